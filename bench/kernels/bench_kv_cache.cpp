// SPDX-License-Identifier: Apache-2.0
// The kernels that write the KV cache: RoPE with the write of new tokens (against pe::cpu), copies of whole blocks and
// swaps to pinned host memory (against the bytes themselves).
#include <cstdio>
#if defined(PE_CUDA)
#include "common.h"
#include "pe/kv_cache.h"

namespace {

using namespace bench;
using pe::DType;

constexpr int kBlockSize = 16, kMaxPosition = 4096;

struct Heads {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
  bool qk_norm;
};
constexpr Heads kHeads[] = {
    {"H32/8 D128", 32, 8, 128, false}, {"H9/3 D64", 9, 3, 64, false}, {"H16/8 D128 qk-norm", 16, 8, 128, true}};

std::vector<float> rotary_table(int head_dim) {
  std::vector<float> table(static_cast<size_t>(kMaxPosition) * head_dim);
  for (int t = 0; t < kMaxPosition; ++t)
    for (int i = 0; i < head_dim / 2; ++i) {
      const double angle = t * std::pow(10000.0, -2.0 * i / head_dim);
      table[t * head_dim + i] = static_cast<float>(std::cos(angle));
      table[t * head_dim + head_dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  return table;
}

void bench_rope_write(Report& report, const Gpu& gpu, const Heads& heads, int64_t num_tokens) {
  const std::string name = std::string("rope_write_kv bf16 ") + heads.name + " T" + std::to_string(num_tokens);
  if (!report.wants(name)) return;
  const int64_t row = static_cast<int64_t>(heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
  const int64_t block = static_cast<int64_t>(heads.num_kv_heads) * kBlockSize * heads.head_dim;
  const int32_t num_blocks = static_cast<int32_t>(2 * pe::div_ceil<int64_t>(num_tokens, kBlockSize) + 1);
  const Array qkv_in = Array::random(num_tokens * row, DType::kBF16, 3);
  const Array norm_in = Array::random(2 * heads.head_dim, DType::kBF16, 5);
  Array qkv_cpu = qkv_in, cache_cpu = Array::poisoned(2 * num_blocks * block, DType::kBF16);
  DeviceMemory qkv = upload(qkv_in), cache(cache_cpu.bytes());
  cache.poison();
  const DeviceMemory norm = upload(norm_in);
  std::vector<int32_t> positions(num_tokens);
  std::vector<int64_t> slots(num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) {  // every second block, from the end on
    positions[t] = static_cast<int32_t>((t * 37) % kMaxPosition);
    slots[t] = (num_blocks - 2 - 2 * (t / kBlockSize)) * kBlockSize + t % kBlockSize;
  }
  const DeviceVector<int32_t> position(positions);
  const DeviceVector<int64_t> slot(slots);
  const DeviceVector<float> table(rotary_table(heads.head_dim));
  const auto params = [&](void* qkv_data, void* cache_data, const void* norms, bool host) {
    pe::RopeWriteKvParams p;
    p.qkv = qkv_data;
    p.positions = host ? position.host() : position.data();
    p.slot_mapping = host ? slot.host() : slot.data();
    p.cos_sin = host ? table.host() : table.data();
    if (heads.qk_norm) p.q_norm = norms, p.k_norm = static_cast<const uint16_t*>(norms) + heads.head_dim;
    p.kv.k = cache_data, p.kv.v = static_cast<uint16_t*>(cache_data) + block;
    p.kv.block_stride = 2 * block, p.kv.head_stride = kBlockSize * heads.head_dim, p.kv.token_stride = heads.head_dim;
    p.kv.num_blocks = num_blocks, p.kv.block_size = kBlockSize;
    p.kv.num_kv_heads = heads.num_kv_heads, p.kv.head_dim = heads.head_dim;
    p.num_tokens = num_tokens, p.qkv_stride = row, p.max_position = kMaxPosition;
    p.num_heads = heads.num_heads, p.rotary_dim = heads.head_dim, p.norm_eps = 1e-6f;
    return p;
  };
  pe::cpu::rope_write_kv(params(qkv_cpu.data(), cache_cpu.data(), norm_in.data(), true));
  const pe::RopeWriteKvParams p = params(qkv.data(), cache.data(), norm.data(), false);
  pe::cuda::rope_write_kv(p, gpu.stream());
  gpu.wait();
  const Array got_qkv = download(qkv, DType::kBF16), got_cache = download(cache, DType::kBF16);
  ErrorNorm error;
  for (int64_t i = 0; i < got_qkv.size(); ++i) error.add(got_qkv.at(i), qkv_cpu.at(i));
  for (int64_t i = 0; i < got_cache.size(); ++i) {  // what neither wrote is NaN in both
    if (!std::isnan(cache_cpu.at(i)) || !std::isnan(got_cache.at(i))) error.add(got_cache.at(i), cache_cpu.at(i));
  }
  Case c;
  c.name = name;
  c.error = error.value(), c.tolerance = tolerance(DType::kBF16);
  c.bytes = 2.0 * qkv.bytes() + 4.0 * num_tokens * heads.head_dim;
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::rope_write_kv(p, gpu.stream()); });
  report.add(c);
}

// Blocks as llama31-8b has them: 2 MiB each with all layers inside, or one part per layer and side.
void bench_copy_blocks(Report& report, const Gpu& gpu, int64_t num_parts, int64_t num_pairs) {
  constexpr int64_t kTotal = 2 << 20, kNumBlocks = 512;
  const int64_t block_bytes = kTotal / num_parts;
  const std::string name =
      "copy_blocks " + std::to_string(num_pairs) + " x 2 MiB in " + std::to_string(num_parts) + " part(s)";
  if (!report.wants(name)) return;
  const RandomTensor arena(kNumBlocks * kTotal / 2, DType::kBF16, 7);
  std::vector<int32_t> pairs;
  for (int32_t i = 0; i < num_pairs; ++i)
    pairs.insert(pairs.end(), {2 * i, static_cast<int32_t>(kNumBlocks) - 1 - 2 * i});
  pairs.insert(pairs.end(), {0, -1});  // padding
  const DeviceVector<int32_t> device_pairs(pairs);
  pe::CopyBlocksParams p;
  p.arena = arena.data();
  p.num_parts = num_parts, p.part_stride_bytes = kNumBlocks * block_bytes;
  p.block_stride_bytes = p.block_bytes = block_bytes;
  p.pairs = device_pairs.data(), p.num_pairs = num_pairs + 1;
  pe::cuda::copy_blocks(p, gpu.stream());
  gpu.wait();
  std::vector<unsigned char> from(block_bytes), to(block_bytes);
  Case c;
  c.name = name;
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t part = i % num_parts;
    const auto at = [&](int32_t b) {
      return static_cast<unsigned char*>(p.arena) + part * p.part_stride_bytes + b * block_bytes;
    };
    BENCH_CHECK(cudaMemcpy(from.data(), at(pairs[2 * i]), block_bytes, cudaMemcpyDeviceToHost));
    BENCH_CHECK(cudaMemcpy(to.data(), at(pairs[2 * i + 1]), block_bytes, cudaMemcpyDeviceToHost));
    c.error += from != to;
  }
  c.bytes = 2.0 * num_pairs * kTotal;
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::copy_blocks(p, gpu.stream()); });
  report.add(c);
}

// PCIe bounds this one, so its line is a rate and no fraction of the device's roof.
void bench_swap_blocks(Report& report, const Gpu& gpu, bool to_host) {
  constexpr int64_t kBlock = 2 << 20, kNumBlocks = 128, kPairs = 64;
  const std::string name = std::string("swap_blocks 64 x 2 MiB ") + (to_host ? "to the host" : "to the device");
  if (!report.wants(name)) return;
  const RandomTensor device(kNumBlocks * kBlock / 2, DType::kBF16, 9);
  unsigned char* host = nullptr;
  BENCH_CHECK(cudaMallocHost(reinterpret_cast<void**>(&host), kNumBlocks * kBlock));
  Random random(11);
  for (int64_t i = 0; i < kNumBlocks * kBlock; i += 8) {
    const uint64_t bits = random.bits();
    std::memcpy(host + i, &bits, 8);
  }
  std::vector<int32_t> pairs;
  for (int32_t i = 0; i < kPairs; ++i) pairs.insert(pairs.end(), {i * 2, static_cast<int32_t>(kNumBlocks) - 1 - i});
  pe::SwapBlocksParams p;
  p.dst = to_host ? static_cast<void*>(host) : device.data();
  p.src = to_host ? device.data() : static_cast<void*>(host);
  p.block_bytes = p.dst_block_stride_bytes = p.src_block_stride_bytes = kBlock;
  p.pairs = pairs.data(), p.num_pairs = kPairs;
  pe::cuda::swap_blocks(p, gpu.stream());
  gpu.wait();
  std::vector<unsigned char> block(kBlock);
  Case c;
  c.name = name;
  for (int64_t i = 0; i < kPairs; ++i) {
    const int64_t device_block = pairs[2 * i + (to_host ? 0 : 1)], host_block = pairs[2 * i + (to_host ? 1 : 0)];
    BENCH_CHECK(cudaMemcpy(block.data(), static_cast<unsigned char*>(device.data()) + device_block * kBlock, kBlock,
                           cudaMemcpyDeviceToHost));
    c.error += std::memcmp(block.data(), host + host_block * kBlock, kBlock) != 0;
  }
  c.bytes = 1.0 * kPairs * kBlock;
  c.roofed = false;
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::swap_blocks(p, gpu.stream()); });
  report.add(c);
  cudaFreeHost(host);
}

void run(Report& report, const Gpu& gpu) {
  for (const Heads& heads : kHeads)
    for (const int64_t num_tokens : {1, 64, 256, 2048}) bench_rope_write(report, gpu, heads, num_tokens);
  for (const int64_t num_parts : {1, 64})
    for (const int64_t num_pairs : {1, 64}) bench_copy_blocks(report, gpu, num_parts, num_pairs);
  for (const bool to_host : {true, false}) bench_swap_blocks(report, gpu, to_host);
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, false, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
