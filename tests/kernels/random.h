// Seeded random inputs for kernel tests. The seed is printed by whoever makes the generator.
#ifndef BACKSTORY_TESTS_KERNELS_RANDOM_H_
#define BACKSTORY_TESTS_KERNELS_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace backstory {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(engine_); }
  bool Chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  float Normal(float scale = 1) { return std::normal_distribution<float>(0, scale)(engine_); }
  std::vector<float> Normals(size_t n, float scale = 1) {
    std::vector<float> values(n);
    for (float& v : values) v = Normal(scale);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_KERNELS_RANDOM_H_
