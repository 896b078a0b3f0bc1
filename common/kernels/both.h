// For what host and device both run: EM_BOTH in front of a function.
#pragma once

#if defined(__CUDACC__)
#define EM_BOTH __host__ __device__
#else
#define EM_BOTH
#endif
