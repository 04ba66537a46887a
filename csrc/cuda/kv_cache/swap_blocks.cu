// SPDX-License-Identifier: Apache-2.0
// Whole blocks between the device arena and a pinned host arena, by the copy engines: no kernel, no SM, host pairs.
// traffic: num_pairs * num_parts * block_bytes over PCIe; floor: 55 GB/s on Gen5 x16, large copies; not yet measured
//
// Neighbouring pairs (s, d), (s + 1, d + 1) whose blocks touch on both sides become one copy, and up to kBatch copies
// go to the driver in one call where the toolkit has cudaMemcpyBatchAsync.
#include "cuda/common/launch.cuh"
#include "pe/kv_cache.h"

namespace pe::cuda {
namespace {

constexpr const char* kOp = "swap_blocks";
constexpr int kBatch = 256;

// Collects copies and issues them, in order of arrival, when full and at the end.
class CopyBatch {
 public:
  explicit CopyBatch(Stream stream) : stream_(stream) {}

  void add(void* dst, const void* src, size_t bytes) {
    if (count_ == kBatch) issue();
    dst_[count_] = dst;
    src_[count_] = src;
    bytes_[count_++] = bytes;
  }

  void issue() {
    const int count = count_;
    count_ = 0;
    if (count == 0) return;
#if CUDART_VERSION >= 13000
    if (stream_ != nullptr && count > 1) {  // the batched call refuses the default stream
      cudaMemcpyAttributes attributes{};
      attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
      size_t first = 0;
      check_cuda(kOp,
                 cudaMemcpyBatchAsync(dst_, src_, bytes_, static_cast<size_t>(count), &attributes, &first, 1, stream_));
      return;
    }
#endif
    for (int i = 0; i < count; ++i) {
      check_cuda(kOp, cudaMemcpyAsync(dst_[i], src_[i], bytes_[i], cudaMemcpyDefault, stream_));
    }
  }

 private:
  Stream stream_;
  int count_ = 0;
  void* dst_[kBatch];
  const void* src_[kBatch];
  size_t bytes_[kBatch];
};

}  // namespace

void swap_blocks(const SwapBlocksParams& p, Stream stream) {
  PE_CHECK(kOp, p.block_bytes > 0, "block_bytes must be positive, got " + std::to_string(p.block_bytes));
  const bool dense = p.src_block_stride_bytes == p.block_bytes && p.dst_block_stride_bytes == p.block_bytes;
  CopyBatch copies(stream);
  for (int64_t part = 0; part < p.num_parts; ++part) {
    const char* src = static_cast<const char*>(p.src) + part * p.src_part_stride_bytes;
    char* dst = static_cast<char*>(p.dst) + part * p.dst_part_stride_bytes;
    for (int64_t i = 0, run = 1; i < p.num_pairs; i += run) {
      const int32_t* pair = p.pairs + 2 * i;
      run = 1;
      while (dense && i + run < p.num_pairs && pair[2 * run] == pair[0] + run && pair[2 * run + 1] == pair[1] + run)
        ++run;
      copies.add(dst + pair[1] * p.dst_block_stride_bytes, src + pair[0] * p.src_block_stride_bytes,
                 static_cast<size_t>(run * p.block_bytes));
    }
  }
  copies.issue();
}

}  // namespace pe::cuda
