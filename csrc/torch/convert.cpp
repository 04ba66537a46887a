// SPDX-License-Identifier: Apache-2.0
// The checks behind convert.h and the way to torch's current CUDA stream.
#include "torch/convert.h"

#include <dlfcn.h>

namespace pe::torch_ops {
namespace {

std::string dtype_text(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return "float32";
  if (dtype == aoti_torch_dtype_float16()) return "float16";
  if (dtype == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (dtype == aoti_torch_dtype_float64()) return "float64";
  if (dtype == aoti_torch_dtype_float8_e4m3fn()) return "float8_e4m3fn";
  if (dtype == aoti_torch_dtype_int32()) return "int32";
  if (dtype == aoti_torch_dtype_int64()) return "int64";
  if (dtype == aoti_torch_dtype_uint8()) return "uint8";
  if (dtype == aoti_torch_dtype_uint16()) return "uint16";
  if (dtype == aoti_torch_dtype_bool()) return "bool";
  return "torch dtype number " + std::to_string(dtype);
}

std::string device_text(int32_t type, int32_t index) {
  if (type == aoti_torch_device_type_cpu()) return "cpu";
  if (type == aoti_torch_device_type_cuda()) return "cuda:" + std::to_string(index);
  return "torch device number " + std::to_string(type);
}

// An argument that lives elsewhere than the first one of its call.
struct Place {
  int32_t type = -1, index = -1;
  explicit Place(const Tensor& tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  }
};

}  // namespace

Arg Call::arg(const char* name, const Tensor& tensor) {
  const Place place(tensor);
  if (device_type_ < 0) {
    device_type_ = place.type;
    device_index_ = place.index;
  } else if (place.type != device_type_ || place.index != device_index_) {
    fail(std::string(name) + " must be on " + device_text(device_type_, device_index_) +
         " like the arguments before it, got " + device_text(place.type, place.index));
  }
  return Arg(*this, name, tensor);
}

Arg Call::any_device(const char* name, const Tensor& tensor) {
  const Place place(tensor);
  if (place.type == aoti_torch_device_type_cuda() || device_type_ < 0) {
    device_type_ = place.type;
    device_index_ = place.index;
  }
  return Arg(*this, name, tensor);
}

Arg::Arg(const Call& call, const char* name, const Tensor& tensor) : call_(call), name_(name), tensor_(tensor) {
  int64_t *sizes = nullptr, *strides = nullptr;
  ndim_ = tensor.dim();
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  sizes_ = sizes;
  strides_ = strides;
  data_ = tensor.data_ptr();
  keep_alive(tensor);
}

std::string Arg::shape_text() const {
  std::string text = "[";
  for (int64_t d = 0; d < ndim_; ++d) text += (d ? ", " : "") + std::to_string(sizes_[d]);
  return text + "]";
}

const Arg& Arg::shape(std::initializer_list<Dim*> dims) const {
  bool same = static_cast<int64_t>(dims.size()) == ndim_;
  int64_t d = 0;
  for (Dim* dim : dims) {
    if (!same) break;
    if (dim->value < 0) dim->value = sizes_[d];
    same = dim->value == sizes_[d++];
  }
  if (same) return *this;
  std::string expected;
  for (const Dim* dim : dims) {
    expected += (expected.empty() ? "" : ", ") + std::string(dim->name);
    if (dim->value >= 0) expected += "=" + std::to_string(dim->value);
  }
  call_.fail(std::string(name_) + " must have the shape [" + expected + "], got " + shape_text());
}

int32_t Arg::torch_dtype() const {
  int32_t dtype = -1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor_.get(), &dtype));
  return dtype;
}

const Arg& Arg::dtype(FloatType* type) const {
  const int32_t came = torch_dtype();
  DType found;
  if (came == aoti_torch_dtype_bfloat16()) {
    found = DType::kBF16;
  } else if (came == aoti_torch_dtype_float16()) {
    found = DType::kF16;
  } else if (came == aoti_torch_dtype_float32()) {
    found = DType::kF32;
  } else {
    call_.fail(std::string(name_) + " must be float32, float16 or bfloat16, got " + dtype_text(came));
  }
  if (!type->bound) *type = {found, true};
  if (type->value != found) {
    call_.fail(std::string(name_) + " must be " + name_of(type->value) + " like the arguments before it, got " +
               name_of(found));
  }
  return *this;
}

DType Arg::kv_dtype(FloatType computed) const {
  if (torch_dtype() == aoti_torch_dtype_float8_e4m3fn()) return DType::kF8E4M3;
  dtype(&computed);
  return computed.value;
}

const Arg& Arg::dtype(int32_t expected) const {
  const int32_t came = torch_dtype();
  if (came != expected) {
    call_.fail(std::string(name_) + " must be " + dtype_text(expected) + ", got " + dtype_text(came));
  }
  return *this;
}

const Arg& Arg::rows() const {
  if (ndim_ > 0 && sizes_[ndim_ - 1] > 1 && strides_[ndim_ - 1] != 1) {
    call_.fail(std::string(name_) + " must have a contiguous last dimension, got stride " +
               std::to_string(strides_[ndim_ - 1]));
  }
  return *this;
}

const Arg& Arg::contiguous() const {
  if (!tensor_.is_contiguous())
    call_.fail(std::string(name_) + " must be contiguous, got strides that are not, shape " + shape_text());
  return *this;
}

const Arg& Arg::aligned(size_t bytes) const {
  const size_t rest = reinterpret_cast<uintptr_t>(data_) % bytes;
  if (rest != 0) {
    call_.fail(std::string(name_) + " must start at a multiple of " + std::to_string(bytes) + " bytes, got one " +
               std::to_string(rest) + " past it");
  }
  return *this;
}

DType float_type_of(const Call& call, int64_t code) {
  if (code < 0 || code > 2) call.fail("dtype must be 0 (f32), 1 (f16) or 2 (bf16), got " + std::to_string(code));
  return static_cast<DType>(code);
}

DType kv_type_of(const Call& call, int64_t code) {
  return code == static_cast<int64_t>(DType::kF8E4M3) ? DType::kF8E4M3 : float_type_of(call, code);
}

Stream current_stream(const Call& call) {
  if (!call.on_cuda()) return nullptr;
  // Looked up by name, not linked: this binary must also load where torch has no libtorch_cuda.
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (lookup == nullptr)
    call.fail("this torch has no libtorch_cuda with aoti_torch_get_current_cuda_stream; install a CUDA build of torch");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(lookup(call.device_index(), &stream));
  return static_cast<Stream>(stream);
}

}  // namespace pe::torch_ops
