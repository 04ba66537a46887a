// SPDX-License-Identifier: Apache-2.0
// The row-wise kernels against pe::cpu: RMSNorm, SiLU-and-mul, embedding, and the small ones that build a step's inputs
// on the device.
#include <cstdio>
#if defined(PE_CUDA)
#include "common.h"
#include "pe/activation.h"
#include "pe/norm.h"
#include "pe/step_inputs.h"

namespace {

using namespace bench;
using pe::DType;
constexpr DType kDtype = DType::kBF16;

std::string shape(int64_t rows, int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

void bench_norm(Report& report, const Gpu& gpu, int64_t rows, int64_t cols, bool with_residual) {
  const std::string name = std::string("rms_norm ") + (with_residual ? "residual " : "") + "bf16 " + shape(rows, cols);
  if (!report.wants(name)) return;
  const Array x = Array::random(rows * cols, kDtype, 3), residual_in = Array::random(rows * cols, kDtype, 5);
  const Array weight = Array::random(cols, kDtype, 7);
  Array want = Array::poisoned(x.size(), kDtype), residual_cpu = residual_in;
  const DeviceMemory x_device = upload(x), residual = upload(residual_in), weight_device = upload(weight);
  DeviceMemory out(x.bytes());
  out.poison();
  pe::RmsNormParams p;
  p.rows = rows, p.cols = cols, p.out_stride = p.x_stride = p.residual_stride = cols, p.eps = 1e-5f;
  p.out = want.data(), p.x = x.data(), p.weight = weight.data();
  if (with_residual) p.residual = residual_cpu.data();
  pe::cpu::rms_norm(p);
  p.out = out.data(), p.x = x_device.data(), p.weight = weight_device.data();
  if (with_residual) p.residual = residual.data();
  pe::cuda::rms_norm(p, gpu.stream());
  gpu.wait();
  Case c;
  c.name = name;
  c.error = relative_error(download(out, kDtype), want);
  if (with_residual) c.error = std::max(c.error, relative_error(download(residual, kDtype), residual_cpu));
  c.tolerance = tolerance(kDtype);
  c.bytes = (with_residual ? 4.0 : 2.0) * x.bytes() + weight.bytes();
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::rms_norm(p, gpu.stream()); });
  report.add(c);
}

void bench_silu(Report& report, const Gpu& gpu, int64_t rows, int64_t cols) {
  const std::string name = "silu_mul bf16 " + shape(rows, cols);
  if (!report.wants(name)) return;
  const Array gate_up = Array::random(rows * 2 * cols, kDtype, 3);
  Array want = Array::poisoned(rows * cols, kDtype);
  const DeviceMemory gate_up_device = upload(gate_up);
  DeviceMemory out(want.bytes());
  out.poison();
  pe::SiluMulParams p;
  p.rows = rows, p.cols = cols, p.out_stride = cols, p.gate_up_stride = 2 * cols;
  p.out = want.data(), p.gate_up = gate_up.data();
  pe::cpu::silu_mul(p);
  p.out = out.data(), p.gate_up = gate_up_device.data();
  pe::cuda::silu_mul(p, gpu.stream());
  gpu.wait();
  Case c;
  c.name = name;
  c.error = relative_error(download(out, kDtype), want), c.tolerance = tolerance(kDtype);
  c.bytes = static_cast<double>(gate_up.bytes() + want.bytes());
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::silu_mul(p, gpu.stream()); });
  report.add(c);
}

// A gather is exact; the CPU keeps its table packed, so the reference is the row itself.
void bench_embedding(Report& report, const Gpu& gpu, int64_t num_tokens) {
  constexpr int64_t kVocab = 128256, kDim = 4096;
  const std::string name = "embedding bf16 V128256 " + shape(num_tokens, kDim);
  if (!report.wants(name)) return;
  const RandomTensor weight(kVocab * kDim, kDtype, 3);
  DeviceMemory out(num_tokens * kDim * 2);
  out.poison();
  std::vector<int32_t> ids(num_tokens);
  Random random(5);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(kVocab));
  ids.back() = -1;  // a row of zeros
  const DeviceVector<int32_t> device_ids(ids);
  pe::EmbeddingParams p;
  p.out = out.data(), p.ids = device_ids.data(), p.weight = weight.data();
  p.num_tokens = num_tokens, p.vocab_size = kVocab, p.dim = p.out_stride = kDim;
  pe::cuda::embedding(p, gpu.stream());
  gpu.wait();
  const Array got = download(out, kDtype);
  ErrorNorm error;
  for (int64_t i = 0; i < got.size(); ++i) {
    const int64_t id = ids[i / kDim];
    error.add(got.at(i), id < 0 ? 0.0 : weight.at(id * kDim + i % kDim));
  }
  Case c;
  c.name = name;
  c.error = error.value();
  c.bytes = 2.0 * out.bytes();
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::embedding(p, gpu.stream()); });
  report.add(c);
}

void bench_gather(Report& report, const Gpu& gpu, int64_t num_indices) {
  constexpr int64_t kRows = 8192, kCols = 4096;
  const std::string name = "gather_rows bf16 " + shape(num_indices, kCols);
  if (!report.wants(name)) return;
  const RandomTensor x(kRows * kCols, kDtype, 3);
  DeviceMemory out(num_indices * kCols * 2);
  out.poison();
  std::vector<int32_t> indices(num_indices);
  Random random(5);
  for (int32_t& i : indices) i = static_cast<int32_t>(random.below(kRows));
  const DeviceVector<int32_t> device_indices(indices);
  pe::GatherRowsParams p;
  p.out = out.data(), p.x = x.data(), p.indices = device_indices.data();
  p.num_indices = num_indices, p.cols = p.out_stride = p.x_stride = kCols;
  pe::cuda::gather_rows(p, gpu.stream());
  gpu.wait();
  const Array got = download(out, kDtype);
  ErrorNorm error;
  for (int64_t i = 0; i < got.size(); ++i) error.add(got.at(i), x.at(indices[i / kCols] * kCols + i % kCols));
  Case c;
  c.name = name;
  c.error = error.value();
  c.bytes = 2.0 * out.bytes();
  if (Report::correct(c)) c.times_us = gpu.time_us([&] { pe::cuda::gather_rows(p, gpu.stream()); });
  report.add(c);
}

int64_t mismatches(const DeviceMemory& got, const std::vector<int32_t>& want) {
  std::vector<int32_t> host(want.size());
  got.download(host.data(), want.size() * 4);
  int64_t count = 0;
  for (size_t i = 0; i < want.size(); ++i) count += host[i] != want[i];
  return count;
}

// All of a decode step's bookkeeping: block table entries, inputs, and the sampled tokens stored back.
void bench_step(Report& report, const Gpu& gpu, int32_t num_seqs) {
  const std::string name = "step_inputs + update_block_tables + store_tokens S" + std::to_string(num_seqs);
  if (!report.wants(name)) return;
  constexpr int32_t kMaxBlocks = 128, kBlockSize = 16;
  const int32_t num_rows = num_seqs + 8, num_tokens = num_seqs + 8;  // 8 padding tokens
  std::vector<int32_t> tables(num_rows * kMaxBlocks), last(num_rows), rows, computed, ones(num_seqs, 1),
      none(num_seqs, -1), ids, entries;
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i * 7 % 10007);
  for (int32_t i = 0; i < num_rows; ++i) last[i] = 1000 + i;
  for (int32_t i = 0; i < num_seqs; ++i) {
    rows.push_back((i * 5 + 3) % num_rows), computed.push_back(17 * i % 2000), ids.push_back(i % 3 == 0 ? -1 : 50 + i);
    entries.insert(entries.end(), {i, 100, 9000 + i});
  }
  const DeviceVector<int32_t> d_rows(rows), d_computed(computed), d_ones(ones), d_none(none), d_ids(ids),
      d_entries(entries);
  const DeviceVector<int32_t> d_tables(tables), d_last(last);
  struct Outputs {
    std::vector<int32_t> query_start, seq_lens, input_ids, positions, last_indices;
    std::vector<int64_t> slots;
  } want{std::vector<int32_t>(num_seqs + 1), std::vector<int32_t>(num_seqs), std::vector<int32_t>(num_tokens),
         std::vector<int32_t>(num_tokens),   std::vector<int32_t>(num_seqs), std::vector<int64_t>(num_tokens)};
  DeviceVector<int32_t> query_start(want.query_start), seq_lens(want.seq_lens), input_ids(want.input_ids),
      positions(want.positions), last_indices(want.last_indices);
  DeviceVector<int64_t> slots(want.slots);
  pe::UpdateBlockTablesParams update{d_tables.data(), kMaxBlocks, d_entries.data(), num_seqs};
  pe::StoreTokensParams store{d_last.data(), d_rows.data(), d_ids.data(), num_seqs};
  pe::StepInputsParams p;
  p.last_tokens = d_last.data(), p.block_tables = d_tables.data(), p.block_table_stride = kMaxBlocks;
  p.block_size = kBlockSize, p.rows = d_rows.data(), p.num_new_tokens = d_ones.data(),
  p.num_computed = d_computed.data();
  p.prompt_offsets = d_none.data(), p.prompt_ids = d_none.data(), p.num_seqs = num_seqs, p.num_tokens = num_tokens;
  p.query_start = query_start.data(), p.seq_lens = seq_lens.data(), p.input_ids = input_ids.data();
  p.positions = positions.data(), p.slot_mapping = slots.data(), p.last_indices = last_indices.data();
  const auto call = [&] {
    pe::cuda::update_block_tables(update, gpu.stream());
    pe::cuda::step_inputs(p, gpu.stream());
    pe::cuda::store_tokens(store, gpu.stream());
  };
  call();
  gpu.wait();
  pe::cpu::update_block_tables({tables.data(), kMaxBlocks, entries.data(), num_seqs});
  pe::StepInputsParams cpu = p;
  cpu.last_tokens = last.data(), cpu.block_tables = tables.data(), cpu.rows = rows.data();
  cpu.num_new_tokens = ones.data(), cpu.num_computed = computed.data(),
  cpu.prompt_offsets = cpu.prompt_ids = none.data();
  cpu.query_start = want.query_start.data(), cpu.seq_lens = want.seq_lens.data(), cpu.input_ids = want.input_ids.data();
  cpu.positions = want.positions.data(), cpu.slot_mapping = want.slots.data(),
  cpu.last_indices = want.last_indices.data();
  pe::cpu::step_inputs(cpu);
  pe::cpu::store_tokens({last.data(), rows.data(), ids.data(), num_seqs});
  Case c;
  c.name = name;
  c.error = static_cast<double>(mismatches(query_start, want.query_start) + mismatches(seq_lens, want.seq_lens) +
                                mismatches(input_ids, want.input_ids) + mismatches(positions, want.positions) +
                                mismatches(last_indices, want.last_indices) + mismatches(d_last, last) +
                                mismatches(d_tables, tables));
  std::vector<int64_t> got_slots(num_tokens);
  slots.download(got_slots.data(), slots.bytes());
  c.error += got_slots != want.slots;
  c.bytes = 4.0 * (num_seqs * 15 + num_tokens * 4);
  if (Report::correct(c)) c.times_us = gpu.time_us(call);
  report.add(c);
}

void run(Report& report, const Gpu& gpu) {
  for (const int64_t rows : {1, 64, 256, 2048, 8192})
    for (const bool with_residual : {false, true}) bench_norm(report, gpu, rows, 4096, with_residual);
  bench_norm(report, gpu, 256, 576, true);
  for (const int64_t rows : {1, 64, 256, 2048}) bench_silu(report, gpu, rows, 14336);
  bench_silu(report, gpu, 256, 1536);
  for (const int64_t num_tokens : {1, 256, 2048}) bench_embedding(report, gpu, num_tokens);
  for (const int64_t num_indices : {1, 256}) bench_gather(report, gpu, num_indices);
  for (const int32_t num_seqs : {1, 256}) bench_step(report, gpu, num_seqs);
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, false, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
