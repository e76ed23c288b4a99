// What one core can do at best, measured: the bound that every benchmark prints beside its rates.
#ifndef BACKSTORY_KERNELS_PEAK_H_
#define BACKSTORY_KERNELS_PEAK_H_

#include "kernels/dtype.h"

namespace backstory {

// Operations per second of one core from registers alone, best of 50 rounds, measured once per process (about 20 ms);
// 0 where it cannot be measured. fp32 counts 8-wide multiply-adds, the ceiling of an AVX2 machine and of one that runs
// AVX-512 in two halves (Zen 4); on others with AVX-512 shares may pass 1. Without VDPBF16PS bf16 is computed in fp32
// and has its bound. Thread-safe.
double PeakFlops(Dtype dtype);

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_PEAK_H_
