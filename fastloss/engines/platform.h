/* What the Cython engine needs of the platform: threads, fork, memory in huge pages. */
#ifndef FASTLOSS_PLATFORM_H
#define FASTLOSS_PLATFORM_H

#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
static inline int have_openmp(void) { return 1; }
static inline int openmp_threads(void) { return omp_get_max_threads(); }
static inline int openmp_processors(void) { return omp_get_num_procs(); }
#else
static inline int have_openmp(void) { return 0; }
static inline int openmp_threads(void) { return 1; }
static inline int openmp_processors(void) { return 1; }
#endif

/* An OpenMP runtime whose threads are gone, as in the child of a fork, waits for them for ever. */
static int is_forked_child = 0;
static void note_fork(void) { is_forked_child = 1; }

#ifdef _WIN32
#include <malloc.h>
static inline void watch_forks(void) { (void)note_fork; }
static inline void *allocate_pages(size_t size) { return _aligned_malloc(size, 4096); }
static inline void free_pages(void *p) { _aligned_free(p); }
#else
#include <pthread.h>
#include <sys/mman.h>
static inline void watch_forks(void) { pthread_atfork(NULL, NULL, note_fork); }
/* Fresh pages of 4 KiB cost several times what a loss kernel does: ask for huge ones. */
static inline void *allocate_pages(size_t size) {
    void *p = NULL;
    if (posix_memalign(&p, size >= (1u << 22) ? 1u << 21 : 4096, size) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (size >= (1u << 22)) madvise(p, size, MADV_HUGEPAGE);
#endif
    return p;
}
static inline void free_pages(void *p) { free(p); }
#endif

#endif
