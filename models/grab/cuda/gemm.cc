#include "models/grab/cuda/gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

// The functions of libcublasLt that are used, by their own names.
struct Functions {
#define BACKSTORY_CUBLASLT(name) decltype(&::name) name = nullptr
  BACKSTORY_CUBLASLT(cublasLtCreate);
  BACKSTORY_CUBLASLT(cublasLtDestroy);
  BACKSTORY_CUBLASLT(cublasLtMatmul);
  BACKSTORY_CUBLASLT(cublasLtMatmulAlgoGetHeuristic);
  BACKSTORY_CUBLASLT(cublasLtMatmulDescCreate);
  BACKSTORY_CUBLASLT(cublasLtMatmulDescDestroy);
  BACKSTORY_CUBLASLT(cublasLtMatmulDescSetAttribute);
  BACKSTORY_CUBLASLT(cublasLtMatrixLayoutCreate);
  BACKSTORY_CUBLASLT(cublasLtMatrixLayoutDestroy);
  BACKSTORY_CUBLASLT(cublasLtMatrixLayoutSetAttribute);
  BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceCreate);
  BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceDestroy);
  BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceSetAttribute);
#undef BACKSTORY_CUBLASLT
};

class Library final : public CudaGemmLibrary {
 public:
  explicit Library(std::shared_ptr<CudaDevice> device) : device_(std::move(device)) {}
  ~Library() override {
    if (handle_ != nullptr) static_cast<void>(f.cublasLtDestroy(handle_));
    // The library itself stays: its worker threads and context hooks do not survive being unloaded.
  }

  absl::Status Load() {
    void* library = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      if ((library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (library == nullptr) {
      return absl::FailedPreconditionError("libcublasLt.so.13: not found by the dynamic linker (package libcublas)");
    }
    const char* missing = nullptr;
    const auto find = [&](auto* to, const char* name) {
      *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(dlsym(library, name));
      if (*to == nullptr) missing = name;
    };
#define BACKSTORY_CUBLASLT(name) find(&f.name, #name)
    BACKSTORY_CUBLASLT(cublasLtCreate);
    BACKSTORY_CUBLASLT(cublasLtDestroy);
    BACKSTORY_CUBLASLT(cublasLtMatmul);
    BACKSTORY_CUBLASLT(cublasLtMatmulAlgoGetHeuristic);
    BACKSTORY_CUBLASLT(cublasLtMatmulDescCreate);
    BACKSTORY_CUBLASLT(cublasLtMatmulDescDestroy);
    BACKSTORY_CUBLASLT(cublasLtMatmulDescSetAttribute);
    BACKSTORY_CUBLASLT(cublasLtMatrixLayoutCreate);
    BACKSTORY_CUBLASLT(cublasLtMatrixLayoutDestroy);
    BACKSTORY_CUBLASLT(cublasLtMatrixLayoutSetAttribute);
    BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceCreate);
    BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceDestroy);
    BACKSTORY_CUBLASLT(cublasLtMatmulPreferenceSetAttribute);
#undef BACKSTORY_CUBLASLT
    if (missing != nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("libcublasLt.so has no ", missing));
    }
    if (absl::Status status = device_->Select(); !status.ok()) return status;
    if (const cublasStatus_t made = f.cublasLtCreate(&handle_); made != CUBLAS_STATUS_SUCCESS) {
      return absl::FailedPreconditionError(absl::StrCat("cublasLtCreate: status ", static_cast<int>(made)));
    }
    return absl::OkStatus();
  }

  Functions f;
  cublasLtHandle_t handle() const { return handle_; }
  CudaDevice& device() const { return *device_; }

 private:
  const std::shared_ptr<CudaDevice> device_;
  cublasLtHandle_t handle_ = nullptr;
};

// The library is column-major: Y^T [n x m] = W [k x n]^T X^T [k x m].
class Gemm final : public CudaGemm {
 public:
  Gemm(std::shared_ptr<Library> library, const CudaGemmShape& shape) : library_(std::move(library)), shape_(shape) {}
  ~Gemm() override {
    const Functions& f = library_->f;
    for (cublasLtMatrixLayout_t layout : {w_, x_, y_}) {
      if (layout != nullptr) static_cast<void>(f.cublasLtMatrixLayoutDestroy(layout));
    }
    if (desc_ != nullptr) static_cast<void>(f.cublasLtMatmulDescDestroy(desc_));
  }

  absl::Status Prepare() {
    if (absl::Status status = Describe(shape_.batch); !status.ok()) return status;
    if (Choose()) return absl::OkStatus();
    // No batched kernel with this epilogue: one after the other.
    loops_ = shape_.batch;
    if (absl::Status status = Describe(1); !status.ok()) return status;
    if (Choose()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("cuBLASLt has no algorithm for m ", shape_.m, " n ", shape_.n, " k ",
                                            shape_.k, " batch ", shape_.batch));
  }

  absl::Status Run(const void* x, const void* w, const void* bias, void* y, void* workspace,
                   void* stream) const override {
    const cublasStatus_t status = Launch(x, w, bias, y, workspace, stream);
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    if (status == CUBLAS_STATUS_ALLOC_FAILED)
      return library_->device().Check(cudaErrorMemoryAllocation, "matrix product");
    return library_->device().CheckText("cublasLtMatmul failed", "matrix product");
  }

 private:
  cublasStatus_t Launch(const void* x, const void* w, const void* bias, void* y, void* workspace, void* stream) const {
    const Functions& f = library_->f;
    const float one = 1, beta = shape_.add_to_output ? 1 : 0;
    const int64_t in = 2, out = shape_.output_is_float ? 4 : 2;
    for (int i = 0; i < loops_; ++i) {
      const auto at = [&](const void* base, int64_t bytes) { return static_cast<const char*>(base) + i * bytes; };
      cublasLtMatmulDesc_t desc = desc_;
      const void* bias_at = shape_.bias ? at(bias, shape_.bias_stride * out) : nullptr;
      std::lock_guard lock(mutex_);  // the bias pointer is part of the description
      if (shape_.bias) {
        static_cast<void>(
            f.cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias_at, sizeof(bias_at)));
      }
      void* y_at = const_cast<char*>(at(y, shape_.y_stride * out));
      const cublasStatus_t status = f.cublasLtMatmul(
          library_->handle(), desc, &one, at(w, shape_.w_stride * in), w_, at(x, shape_.x_stride * in), x_, &beta, y_at,
          y_, y_at, y_, &algorithm_, workspace, CudaGemmLibrary::kWorkspaceBytes, static_cast<cudaStream_t>(stream));
      if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    return CUBLAS_STATUS_SUCCESS;
  }

  absl::Status Layout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int rows, int columns, int ld, int batch,
                      int64_t stride) {
    const Functions& f = library_->f;
    if (*layout != nullptr) static_cast<void>(f.cublasLtMatrixLayoutDestroy(*layout));
    *layout = nullptr;
    bool ok = f.cublasLtMatrixLayoutCreate(layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                           ld) == CUBLAS_STATUS_SUCCESS;
    if (ok && batch > 1) {
      ok = f.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof(batch)) ==
               CUBLAS_STATUS_SUCCESS &&
           f.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                              sizeof(stride)) == CUBLAS_STATUS_SUCCESS;
    }
    return ok ? absl::OkStatus() : absl::InternalError("cuBLASLt refuses a matrix layout");
  }

  absl::Status Describe(int batch) {
    const Functions& f = library_->f;
    const CudaGemmShape& s = shape_;
    const cudaDataType_t in = CUDA_R_16BF;
    const cudaDataType_t out = s.output_is_float ? CUDA_R_32F : CUDA_R_16BF;
    if (desc_ == nullptr) {
      bool ok = f.cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
      const cublasOperation_t transpose = CUBLAS_OP_T;
      ok = ok && f.cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)) ==
                     CUBLAS_STATUS_SUCCESS;
      if (s.bias) {
        const cublasLtEpilogue_t epilogue = s.relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
        ok = ok && f.cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                    sizeof(epilogue)) == CUBLAS_STATUS_SUCCESS;
      }
      if (!ok) return absl::InternalError("cuBLASLt refuses a product's description");
    }
    if (s.bias) {
      const int64_t stride = batch > 1 ? s.bias_stride : 0;
      static_cast<void>(
          f.cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &stride, sizeof(stride)));
    }
    if (absl::Status status = Layout(&w_, in, s.k, s.n, s.k, batch, s.w_stride); !status.ok()) return status;
    if (absl::Status status = Layout(&x_, in, s.k, s.m, s.ldx, batch, s.x_stride); !status.ok()) return status;
    return Layout(&y_, out, s.n, s.m, s.ldy, batch, s.y_stride);
  }

  bool Choose() {
    const Functions& f = library_->f;
    cublasLtMatmulPreference_t preference = nullptr;
    if (f.cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    const size_t workspace = CudaGemmLibrary::kWorkspaceBytes;
    static_cast<void>(f.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                             &workspace, sizeof(workspace)));
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status =
        f.cublasLtMatmulAlgoGetHeuristic(library_->handle(), desc_, w_, x_, y_, y_, preference, 1, &result, &found);
    static_cast<void>(f.cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return false;
    algorithm_ = result.algo;
    return true;
  }

  const std::shared_ptr<Library> library_;
  const CudaGemmShape shape_;
  int loops_ = 1;
  mutable std::mutex mutex_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ =
      {};  // the library's own choice: timing its offers bought nothing and made bits vary
};

}  // namespace

absl::StatusOr<std::shared_ptr<CudaGemmLibrary>> CudaGemmLibrary::Open(std::shared_ptr<CudaDevice> device) {
  auto library = std::make_shared<Library>(std::move(device));
  if (absl::Status status = library->Load(); !status.ok()) return status;
  return library;
}

absl::StatusOr<std::unique_ptr<CudaGemm>> CudaGemm::Create(std::shared_ptr<CudaGemmLibrary> library,
                                                           const CudaGemmShape& shape) {
  auto gemm = std::make_unique<Gemm>(std::static_pointer_cast<Library>(std::move(library)), shape);
  if (absl::Status status = gemm->Prepare(); !status.ok()) return status;
  return gemm;
}

}  // namespace backstory::grab
