// SPDX-License-Identifier: Apache-2.0
// From torch tensors to params structs: every check of dtype, device, shape and stride that an op makes, with messages
// that name the op, the argument, what was expected and what came.
//
// An op opens a Call, describes each tensor once (`call.arg("x", x).shape({&rows, &cols}).dtype(&dtype)`) and reads the
// pointers and strides off the result. A Dim is a named size: unbound, it takes the size it meets first; bound, it
// checks. Only torch's stable ABI is used here (torch/csrc/stable), so the binary is tied to no torch version inside
// the range.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "pe/core.h"

namespace pe::torch_ops {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// A named size that several arguments share.
struct Dim {
  const char* name;
  int64_t value = -1;  // -1: not yet bound
  explicit Dim(const char* n, int64_t v = -1) : name(n), value(v) {}
  operator int64_t() const { return value; }
};

// The element type that several arguments share: f32, f16 or bf16; bound like a Dim.
struct FloatType {
  DType value = DType::kF32;
  bool bound = false;
};

class Arg;

// One invocation of one op: its name for messages, its device (bound by the first tensor), its stream.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}
  Arg arg(const char* name, const Tensor& tensor);
  Arg any_device(const char* name, const Tensor& tensor);  // swap_blocks crosses devices
  const char* op() const { return op_; }
  bool on_cuda() const { return device_type_ == aoti_torch_device_type_cuda(); }
  int32_t device_index() const { return device_index_; }
  [[noreturn]] void fail(const std::string& text) const { throw_error(op_, text); }
  void check(bool condition, const char* text) const {
    if (!condition) fail(text);
  }

 private:
  const char* op_;
  int32_t device_type_ = -1, device_index_ = -1;
};

// One tensor argument under inspection. The checks return *this, so that they chain.
class Arg {
 public:
  Arg(const Call& call, const char* name, const Tensor& tensor);

  const Arg& shape(std::initializer_list<Dim*> dims) const;
  const Arg& dtype(FloatType* type) const;   // f32, f16 or bf16
  const Arg& dtype(int32_t expected) const;  // an aoti_torch_dtype_*()
  DType kv_dtype(FloatType computed) const;  // of a cache: `computed`, or float8_e4m3fn
  const Arg& f32() const { return dtype(aoti_torch_dtype_float32()); }
  const Arg& i32() const { return dtype(aoti_torch_dtype_int32()); }
  const Arg& i64() const { return dtype(aoti_torch_dtype_int64()); }
  const Arg& u16() const { return dtype(aoti_torch_dtype_uint16()); }
  const Arg& rows() const;        // the last dimension is contiguous
  const Arg& contiguous() const;  // all dimensions are
  const Arg& aligned(size_t bytes) const;

  int64_t dim() const { return ndim_; }
  int64_t size(int64_t d) const { return sizes_[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  int64_t numel() const { return tensor_.numel(); }
  size_t element_size() const { return tensor_.element_size(); }
  int32_t torch_dtype() const;
  Workspace bytes() const { return {data<void>(), static_cast<size_t>(numel()) * element_size()}; }
  template <typename T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  std::string shape_text() const;

  const Call& call_;
  const char* name_;
  const Tensor& tensor_;
  void* data_ = nullptr;
  int64_t ndim_ = 0;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;
};

DType float_type_of(const Call& call, int64_t code);  // of a DType that came as an integer
DType kv_type_of(const Call& call, int64_t code);     // likewise, of a cache

// CUDA: the stream that torch's current stream is on `device_index`; nullptr for the CPU.
Stream current_stream(const Call& call);

// While a program is being recorded on this thread, every tensor that an Arg was made of is kept alive with it.
void keep_alive(const Tensor& tensor);

}  // namespace pe::torch_ops
