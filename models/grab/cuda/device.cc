#include "models/grab/cuda/device.h"

#include <cuda_runtime.h>

#include <string_view>

#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

std::string Text(int code) {
  const auto error = static_cast<cudaError_t>(code);
  return absl::StrCat(cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
}

std::string CudaVersion(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

}  // namespace

std::string WhyNoCuda(int error, int driver, int runtime) {
  if (driver == 0) return absl::StrCat("no NVIDIA driver was found, ", Text(error));
  if (error == cudaErrorInsufficientDriver) {
    return absl::StrCat("the NVIDIA driver is too old: it knows CUDA ", CudaVersion(driver), ", this build needs ",
                        CudaVersion(runtime), ", ", Text(error));
  }
  if (error == cudaErrorNoDevice) return absl::StrCat("no NVIDIA card was found, ", Text(error));
  return absl::StrCat("CUDA does not start, ", Text(error));
}

CudaBuffer::~CudaBuffer() {
  // A lost card's errors were reported where they came up.
  if (data_ != nullptr) static_cast<void>(place_ == Place::kCard ? cudaFree(data_) : cudaFreeHost(data_));
}

absl::StatusOr<std::shared_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  int count = 0;
  const auto refuse = [&](const std::string& found) {
    return absl::FailedPreconditionError(absl::StrCat("device cuda:", ordinal, ": ", found));
  };
  if (cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    int driver = 0, runtime = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    static_cast<void>(cudaRuntimeGetVersion(&runtime));
    return refuse(WhyNoCuda(error, driver, runtime));
  }
  if (ordinal < 0 || ordinal >= count) return refuse(absl::StrCat("this machine has ", count, " card(s)"));
  cudaDeviceProp properties;
  if (cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess) {
    return refuse(Text(error));
  }
  if (properties.major != 9 || properties.minor != 0) {
    return refuse(absl::StrCat(properties.name, " has compute capability ", properties.major, ".", properties.minor,
                               ", the kernels are built for 9.0 (Hopper)"));
  }
  auto device = std::shared_ptr<CudaDevice>(new CudaDevice);
  device->ordinal_ = ordinal;
  device->name_ = properties.name;
  device->multiprocessors_ = properties.multiProcessorCount;
  device->total_bytes_ = properties.totalGlobalMem;
  // Makes the context, so that a busy or exclusive card shows here.
  if (cudaError_t error = cudaSetDevice(ordinal); error != cudaSuccess) return refuse(Text(error));
  if (cudaError_t error = cudaFree(nullptr); error != cudaSuccess) return refuse(Text(error));
  return device;
}

absl::Status CudaDevice::Select() const {
  if (absl::Status status = health(); !status.ok()) return status;
  // Cheap where it is selected already; its errors are those of a lost context, which the next Check reports.
  static_cast<void>(cudaSetDevice(ordinal_));
  return absl::OkStatus();
}

size_t CudaDevice::FreeBytes() const {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

absl::StatusOr<CudaBuffer> CudaDevice::Allocate(size_t bytes, const std::string& what, CudaBuffer::Place place) {
  if (absl::Status status = Select(); !status.ok()) return status;
  CudaBuffer buffer;
  buffer.place_ = place;
  buffer.bytes_ = bytes;
  if (bytes == 0) return buffer;
  cudaError_t error = cudaSuccess;
  if (int n = fail_allocation_; n > 0 && --fail_allocation_ == 0) {
    error = cudaErrorMemoryAllocation;
  } else if (place == CudaBuffer::Place::kCard) {
    error = cudaMalloc(&buffer.data_, bytes);
    buffer.on_card_ = buffer.data_;
  } else {
    error = cudaHostAlloc(&buffer.data_, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaSuccess) error = cudaHostGetDevicePointer(&buffer.on_card_, buffer.data_, 0);
  }
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // not sticky: the card goes on
    return absl::ResourceExhaustedError(absl::StrCat(
        "device cuda:", ordinal_, ": no room for ", what, ": ", bytes, " bytes of ",
        place == CudaBuffer::Place::kCard ? absl::StrCat("card memory, ", FreeBytes(), " are free") : "pinned memory"));
  }
  if (absl::Status status = Check(error, what.c_str()); !status.ok()) return status;
  return buffer;
}

absl::Status CudaDevice::Check(int code, const char* what) {
  if (lost_) return health();
  if (const int injected = injected_error_.exchange(0); injected != 0) code = injected;
  if (code == cudaSuccess) return absl::OkStatus();
  if (code == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", ordinal_, ": ", what, ": out of memory"));
  }
  return Lose(absl::StrCat(what, ": ", Text(code)));
}

absl::Status CudaDevice::CheckText(const char* error, const char* what) {
  if (lost_) return health();
  if (error == nullptr) return absl::OkStatus();
  if (std::string_view(error) == cudaGetErrorString(cudaErrorMemoryAllocation))
    return Check(cudaErrorMemoryAllocation, what);
  return Lose(absl::StrCat(what, ": ", error));
}

absl::Status CudaDevice::Lose(const std::string& why) {
  std::function<void(const absl::Status&)> callback;
  absl::Status status;
  {
    std::lock_guard lock(mutex_);
    if (why_lost_.ok()) {
      why_lost_ = absl::UnavailableError(absl::StrCat("device cuda:", ordinal_, " (", name_, ") given up: ", why));
      callback = on_lost_;
      lost_ = true;
    }
    status = why_lost_;
  }
  if (callback) callback(status);
  return status;
}

absl::Status CudaDevice::health() const {
  if (!lost_) return absl::OkStatus();
  std::lock_guard lock(mutex_);
  return why_lost_;
}

void CudaDevice::OnLost(std::function<void(const absl::Status&)> callback) {
  std::lock_guard lock(mutex_);
  on_lost_ = std::move(callback);
}

}  // namespace backstory::grab
