/* fastloss.h stands alone, in C99, C11 and C++17, and may be included twice. */
#include <fastloss.h>
#include <fastloss.h>

int main(void) {
    fl_cross_entropy_call call = fl_cross_entropy_call_init();
    return call.struct_size == sizeof(fl_cross_entropy_call) ? 0 : 1;
}
