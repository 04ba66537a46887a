// SPDX-License-Identifier: Apache-2.0
// What the GPU benchmarks share: device memory, random device data, timing by events with a cold L2, and the roof of
// this GPU.
//
// Each call is timed alone between two events. In front of it a buffer larger than the L2 is written, which both
// empties the cache and keeps the GPU busy while the host submits, so that launch latency stays out of the number. An
// empty pair of events reads about 2 us here, and so does the smallest kernel; sums of such times overstate what a CUDA
// graph needs.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <thread>

#include "inputs.h"
#include "pe/linear.h"
#include "pe/parallel.h"
#include "report.h"

namespace bench {

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) pe::throw_error("bench", std::string(call) + ": " + cudaGetErrorString(error));
}
#define BENCH_CHECK(call) ::bench::check(call, #call)

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) { BENCH_CHECK(cudaMalloc(&data_, std::max<size_t>(bytes, 256))); }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(data_); }

  void poison() { BENCH_CHECK(cudaMemset(data_, 0xff, bytes_)); }  // NaN in every float format, -1 in every integer
  void upload(const void* host, size_t bytes, size_t offset = 0) {
    BENCH_CHECK(cudaMemcpy(bytes_at(offset), host, bytes, cudaMemcpyHostToDevice));
  }
  void download(void* host, size_t bytes, size_t offset = 0) const {
    BENCH_CHECK(cudaMemcpy(host, bytes_at(offset), bytes, cudaMemcpyDeviceToHost));
  }
  unsigned char* bytes_at(size_t offset) const { return static_cast<unsigned char*>(data_) + offset; }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  pe::Workspace workspace() const { return {data_, bytes_}; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

template <typename T>
class DeviceVector : public DeviceMemory {
 public:
  explicit DeviceVector(const std::vector<T>& host) : DeviceMemory(host.size() * sizeof(T)), host_(host) {
    upload(host.data(), bytes());
  }
  T* data() const { return static_cast<T*>(DeviceMemory::data()); }
  const T* host() const { return host_.data(); }  // the same values for pe::cpu

 private:
  std::vector<T> host_;
};

// A large random tensor on the device that the host can read without a copy: a pool of random numbers, repeated.
class RandomTensor {
 public:
  RandomTensor(int64_t size, pe::DType dtype, uint64_t seed, float scale = 1.0f)
      : pool_(Array::random(std::min(size, kPool), dtype, seed, scale)), memory_(size * pe::size_of(dtype)) {
    memory_.upload(pool_.data(), pool_.bytes());
    for (size_t done = pool_.bytes(); done < memory_.bytes(); done *= 2) {
      const size_t bytes = std::min(done, memory_.bytes() - done);
      BENCH_CHECK(cudaMemcpy(memory_.bytes_at(done), memory_.data(), bytes, cudaMemcpyDeviceToDevice));
    }
  }
  float at(int64_t i) const { return pool_.at(i % pool_.size()); }
  void* data() const { return memory_.data(); }
  size_t bytes() const { return memory_.bytes(); }

 private:
  static constexpr int64_t kPool = 4194301;  // elements; a prime, so that the rows of a matrix differ
  Array pool_;
  DeviceMemory memory_;
};

inline Array download(const DeviceMemory& memory, pe::DType dtype) {
  Array array(static_cast<int64_t>(memory.bytes() / pe::size_of(dtype)), dtype);
  memory.download(array.data(), memory.bytes());
  return array;
}
inline DeviceMemory upload(const Array& array) {
  DeviceMemory memory(array.bytes());
  memory.upload(array.data(), array.bytes());
  return memory;
}

class Gpu {
 public:
  explicit Gpu(bool quick) : quick_(quick) {
    BENCH_CHECK(cudaGetDeviceProperties(&properties_, 0));
    BENCH_CHECK(cudaStreamCreate(&stream_));
    BENCH_CHECK(cudaMalloc(&flush_, flush_bytes()));
    pe::cpu::set_num_threads(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));  // of the oracle
  }
  Gpu(const Gpu&) = delete;
  ~Gpu() {
    cudaFree(flush_);
    cudaStreamDestroy(stream_);
  }

  pe::Stream stream() const { return stream_; }
  int num_sms() const { return properties_.multiProcessorCount; }
  size_t l2_bytes() const { return static_cast<size_t>(properties_.l2CacheSize); }
  void wait() const { BENCH_CHECK(cudaStreamSynchronize(stream_)); }

  std::string description() const {
    char text[512];
    int driver = 0, runtime = 0, clock_khz = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0);
    std::snprintf(text, sizeof(text), "%s, %d SMs, up to %d MHz, L2 %zu MB, driver %d.%d, runtime %d.%d",
                  properties_.name, num_sms(), clock_khz / 1000, l2_bytes() >> 20, driver / 1000, driver % 1000 / 10,
                  runtime / 1000, runtime % 1000 / 10);
    return text;
  }

  // Times of single calls in us. warm: leave the caches as the previous call left them.
  std::vector<double> time_us(const std::function<void()>& op, bool warm = false) const {
    const int repeats = quick_ ? 10 : 50;
    std::vector<cudaEvent_t> events(2 * repeats);
    for (cudaEvent_t& event : events) BENCH_CHECK(cudaEventCreate(&event));
    for (int i = 0; i < 3; ++i) op();
    for (int i = 0; i < repeats; ++i) {
      BENCH_CHECK(cudaMemsetAsync(flush_, i, flush_bytes(), stream_));
      if (warm) op();
      BENCH_CHECK(cudaEventRecord(events[2 * i], stream_));
      op();
      BENCH_CHECK(cudaEventRecord(events[2 * i + 1], stream_));
    }
    wait();
    std::vector<double> times(repeats);
    for (int i = 0; i < repeats; ++i) {
      float ms = 0;
      BENCH_CHECK(cudaEventElapsedTime(&ms, events[2 * i], events[2 * i + 1]));
      times[i] = 1e3 * ms;
    }
    for (const cudaEvent_t event : events) cudaEventDestroy(event);
    return times;
  }

  // Bytes read plus bytes written of a large device-to-device copy, best of the repetitions.
  double copy_bytes_per_s() const {
    const size_t bytes = size_t{1} << 30;
    const DeviceMemory from(bytes), to(bytes);
    BENCH_CHECK(cudaMemset(from.data(), 0x3c, bytes));
    const auto times = time_us(
        [&] { BENCH_CHECK(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream_)); });
    return 2.0 * bytes / (quantiles(times).p5 * 1e-6);
  }

  // bf16 8192^3 through cuBLASLt on random data.
  double matmul_flops_per_s() const {
    constexpr int64_t kSize = 8192;
    const RandomTensor x(kSize * kSize, pe::DType::kBF16, 1), weight(kSize * kSize, pe::DType::kBF16, 2);
    const DeviceMemory out(kSize * kSize * 2);
    pe::LinearParams p;
    p.out = out.data(), p.x = x.data(), p.weight = weight.data();
    p.m = p.n = p.k = p.x_stride = p.out_stride = kSize;
    const auto times = time_us([&] { pe::cuda::linear(p, {}, stream_); });
    return 2.0 * kSize * kSize * kSize / (quantiles(times).p5 * 1e-6);
  }

  Roof roof(bool with_matmul) const { return {copy_bytes_per_s(), with_matmul ? matmul_flops_per_s() : 0}; }

 private:
  size_t flush_bytes() const { return std::max<size_t>(2 * l2_bytes(), size_t{64} << 20); }

  bool quick_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  void* flush_ = nullptr;
};

// Runs a benchmark program: without a GPU it says so and fails, because nothing was proven.
inline int run_program(int argc, char** argv, bool with_matmul, void (*body)(Report&, const Gpu&)) {
  const Options options = parse_options(argc, argv);
  try {
    const Gpu gpu(options.quick);
    Report report(options, gpu.description());
    report.set_roof(gpu.roof(with_matmul));
    body(report, gpu);
    return report.exit_code();
  } catch (const pe::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace bench
