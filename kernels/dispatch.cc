#include "kernels/dispatch.h"

#include <atomic>
#include <vector>

#include "kernels/cpu/targets.h"

namespace backstory {
namespace {

const std::vector<const KernelTable*>& Tables() {
  static const std::vector<const KernelTable*>* tables = [] {
    auto* all = new std::vector<const KernelTable*>{&RefKernels()};
    for (const KernelTable* table : CpuKernels()) all->push_back(table);
    return all;
  }();
  return *tables;
}

std::atomic<const KernelTable*>& Active() {
  static std::atomic<const KernelTable*> active{Tables().size() > 1 ? Tables()[1] : Tables()[0]};
  return active;
}

}  // namespace

const KernelTable& Kernels() { return *Active().load(std::memory_order_acquire); }

std::span<const KernelTable* const> AllKernels() { return Tables(); }

ScopedKernels::ScopedKernels(const KernelTable& table) : before_(Active().exchange(&table)) {}

ScopedKernels::~ScopedKernels() { Active().store(before_); }

}  // namespace backstory
