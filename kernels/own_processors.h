// One processor per thread, for measurements.
#ifndef BACKSTORY_KERNELS_OWN_PROCESSORS_H_
#define BACKSTORY_KERNELS_OWN_PROCESSORS_H_

#include <cstddef>

#ifdef __linux__
#include <sched.h>
#endif

namespace backstory {

// While alive, threads started by the caller run beside it, on the machine's other processors, and from Pin on the
// caller keeps to the first one: a scheduler that finds no processor idle otherwise likes to wake a worker on the
// caller's.
class OwnProcessors {
 public:
  explicit OwnProcessors(size_t threads) {
#ifdef __linux__
    if (threads < 2 || sched_getaffinity(0, sizeof(before_), &before_) != 0 || CPU_COUNT(&before_) < 2) return;
    cpu_set_t others = before_;
    CPU_ZERO(&first_);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &before_)) continue;
      CPU_SET(cpu, &first_);
      CPU_CLR(cpu, &others);
      break;
    }
    active_ = sched_setaffinity(0, sizeof(others), &others) == 0;
#endif
  }
  void Pin() {
#ifdef __linux__
    if (active_) sched_setaffinity(0, sizeof(first_), &first_);
#endif
  }
  ~OwnProcessors() {
#ifdef __linux__
    if (active_) sched_setaffinity(0, sizeof(before_), &before_);
#endif
  }
  OwnProcessors(const OwnProcessors&) = delete;
  OwnProcessors& operator=(const OwnProcessors&) = delete;

 private:
  bool active_ = false;
#ifdef __linux__
  cpu_set_t before_, first_;
#endif
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_OWN_PROCESSORS_H_
