/* fastloss.h stands alone, in C99, C11 and C++17, and may be included twice. */
#include <fastloss.h>
#include <fastloss.h>

int main(void) {
    fl_class_call call = fl_class_call_init();
    return call.struct_size == sizeof(fl_class_call) ? 0 : 1;
}
