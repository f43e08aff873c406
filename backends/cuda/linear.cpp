// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <cublasLt.h>

#include <algorithm>
#include <attest/backend.hpp>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "memory.h"

namespace attest::cuda {

namespace {

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(call) + ": " + cublasLtGetStatusString(status));
}
#define ATTEST_CUBLAS(call) check(call, #call)

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* object) const {
    (void)destroy(object);
  }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<destroy>>;

using Library = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Product = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(abi::Storage storage) {
  return storage == abi::Storage::f32 ? CUDA_R_32F : storage == abi::Storage::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

Layout layout(abi::Storage storage, std::int64_t rows, std::int64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  ATTEST_CUBLAS(cublasLtMatrixLayoutCreate(&made, type_of(storage), static_cast<std::uint64_t>(rows),
                                           static_cast<std::uint64_t>(columns), rows));
  return Layout(made);
}

constexpr std::uint32_t most_alignment = 256;  // Of memory as the device gives it, and all that cuBLASLt asks about.
std::uint32_t alignment(const void* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return static_cast<std::uint32_t>(std::min<std::uintptr_t>(most_alignment, address & (~address + 1)));
}

/// A tensor's elements side by side, by way of the host: a copy, unless they lie so already and, where `aligned`, begin
/// where memory of the device's own would. Once a problem, so it may be slow.
void compact_copy(const DLTensor& tensor, bool aligned, Scratch& copy, const std::byte*& data) {
  const auto bytes = static_cast<std::int64_t>(abi::bytes_of(abi::storage_of(tensor.dtype)));
  data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
  const std::int64_t rows = tensor.ndim == 2 ? tensor.shape[0] : 1, columns = tensor.shape[tensor.ndim - 1];
  const std::int64_t row = rows == 1 ? 0 : tensor.strides[0];
  const std::int64_t column = columns == 1 ? 0 : tensor.strides[tensor.ndim - 1];
  const bool compact = (rows == 1 || row == columns) && (columns == 1 || column == 1);
  if (compact && (!aligned || alignment(data) == most_alignment)) return;
  std::vector<std::byte> spread(static_cast<std::size_t>(((rows - 1) * row + (columns - 1) * column + 1) * bytes));
  download(spread.data(), data, spread.size());
  std::vector<std::byte> dense(static_cast<std::size_t>(rows * columns * bytes));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      std::copy_n(spread.data() + (r * row + c * column) * bytes, bytes, dense.data() + (r * columns + c) * bytes);
    }
  }
  std::byte* const to = copy.get(static_cast<std::int64_t>(dense.size()));
  upload(to, dense.data(), dense.size());
  data = to;
}

constexpr std::size_t workspace_bytes = 32 << 20;  // What cuBLAS recommends for compute capability 9.0.

}  // namespace

struct Linear::Parts {
  /// What cuBLASLt chose for so many rows.
  struct Choice {
    Layout x, y;
    cublasLtMatmulAlgo_t algorithm;
  };

  abi::Storage storage;
  Scratch weight_copy, bias_copy, workspace;
  const std::byte *weight_data = nullptr, *bias_data = nullptr;
  Library library;
  Product product;
  Layout weight;
  /// By rows, and the alignments of x and y, on which a choice relies. A plan meets few of them.
  std::map<std::tuple<std::int64_t, std::uint32_t, std::uint32_t>, Choice> choices;

  const Choice& choice(std::int64_t in, std::int64_t out, std::int64_t rows, const std::byte* x, const std::byte* y) {
    const std::tuple key(rows, alignment(x), alignment(y));
    const auto found = choices.find(key);
    if (found != choices.end()) return found->second;
    Choice made{layout(storage, in, rows), layout(storage, out, rows), {}};
    cublasLtMatmulPreference_t preference = nullptr;
    ATTEST_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    const Preference owner(preference);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      ATTEST_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    // Where a product's sums are split, parts are added in f32; other schemes would round each to 16 bits first, for
    // which spec/tolerance.md has no room.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(weight_data));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(x));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(y));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(y));
    cublasLtMatmulHeuristicResult_t result{};
    int results = 0;
    ATTEST_CUBLAS(cublasLtMatmulAlgoGetHeuristic(library.get(), product.get(), weight.get(), made.x.get(), made.y.get(),
                                                 made.y.get(), preference, 1, &result, &results));
    if (results == 0)
      throw std::runtime_error("cuBLASLt has no algorithm for a projection of " + std::to_string(rows) + " x " +
                               std::to_string(in) + " to " + std::to_string(out));
    made.algorithm = result.algo;
    if (choices.size() >= 64) choices.clear();
    return choices.emplace(key, std::move(made)).first->second;
  }
};

// Column-major, as cuBLAS counts: y [out, rows] = W [in, out]^T x [in, rows].
Linear::Linear(const DLTensor& weight, const DLTensor* bias)
    : in_(weight.shape[1]), out_(weight.shape[0]), parts_(std::make_unique<Parts>()) {
  Parts& p = *parts_;
  p.storage = abi::storage_of(weight.dtype);
  compact_copy(weight, false, p.weight_copy, p.weight_data);
  // No preference tells cuBLASLt how a bias is aligned.
  if (bias != nullptr) compact_copy(*bias, true, p.bias_copy, p.bias_data);
  p.workspace.get(static_cast<std::int64_t>(workspace_bytes));

  cublasLtHandle_t library = nullptr;
  ATTEST_CUBLAS(cublasLtCreate(&library));
  p.library.reset(library);
  cublasLtMatmulDesc_t product = nullptr;
  ATTEST_CUBLAS(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  p.product.reset(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    ATTEST_CUBLAS(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (p.bias_data != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(p.bias_data));
  }
  p.weight = layout(p.storage, in_, out_);
}
Linear::Linear(Linear&&) noexcept = default;
Linear::~Linear() = default;

void Linear::apply(const std::byte* x, std::byte* y, std::int64_t rows, Stream stream) {
  if (rows == 0) return;
  Parts& p = *parts_;
  const Parts::Choice& choice = p.choice(in_, out_, rows, x, y);
  const float one = 1, zero = 0;
  ATTEST_CUBLAS(cublasLtMatmul(p.library.get(), p.product.get(), &one, p.weight_data, p.weight.get(), x, choice.x.get(),
                               &zero, y, choice.y.get(), y, choice.y.get(), &choice.algorithm,
                               p.workspace.get(static_cast<std::int64_t>(workspace_bytes)), workspace_bytes,
                               static_cast<cudaStream_t>(stream.handle)));
}

}  // namespace attest::cuda
