// The Highway kernels of every compiled target that this machine can run, best first. Private to kernels.
#ifndef BACKSTORY_KERNELS_CPU_TARGETS_H_
#define BACKSTORY_KERNELS_CPU_TARGETS_H_

#include <vector>

#include "kernels/dispatch.h"

namespace backstory {

std::vector<const KernelTable*> CpuKernels();

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_CPU_TARGETS_H_
