// SPDX-License-Identifier: Apache-2.0
// pe::cuda::paged_attention: decode, prefill, chunks of a prompt and mixtures, over a shuffled block table of 16-token
// blocks.
//
// The proof runs pe::cpu::paged_attention over sampled sequences: their blocks are copied to a small host cache and of
// long prompts the first, a middle and the last rows are compared, which the contract allows because a row depends on
// nothing but its own keys. Times are those of a launch in a replayed graph of a step's layers: a block holds all of
// them, each launch reads its own, and together they exceed the L2. The plan is made once before, and timed by itself.
#include <cstdio>
#if defined(PE_CUDA)
#include <memory>

#include "graph.h"
#include "pe/paged_attention.h"

namespace {

using namespace bench;
using pe::DType;

constexpr int kBlockSize = 16;

struct Heads {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
  DType kv = DType::kBF16;  // of the cache
};
constexpr Heads kLlama = {"H32/8 D128", 32, 8, 128}, kSmol = {"H9/3 D64", 9, 3, 64};
constexpr Heads kLlamaFp8 = {"H32/8 D128 KV f8e4m3", 32, 8, 128, DType::kF8E4M3};
constexpr Heads kSmolFp8 = {"H9/3 D64 KV f8e4m3", 9, 3, 64, DType::kF8E4M3};

struct Sequence {
  int num_queries, seq_len;
};

// One batch on the device: cache, block tables, queries.
class Batch {
 public:
  // The block tables of all sequences begin with the same `num_shared` tokens, whole blocks of them.
  Batch(Heads heads, std::vector<Sequence> sequences, int num_shared)
      : heads_(heads),
        sequences_(std::move(sequences)),
        num_shared_(num_shared),
        layers_(std::clamp<int>(static_cast<int>(kKvBytes / kv_bytes()), 1, 32)),
        kv_(num_blocks() * block_elements() * 2 * layers_, heads.kv, 3),
        q_(num_tokens() * heads.num_heads * heads.head_dim, DType::kBF16, 5),
        out_(q_.bytes()),
        table_(make_table()),
        query_start_(make_query_start()),
        seq_lens_(make_seq_lens()) {
    out_.poison();
  }

  int layers() const { return layers_; }
  pe::PagedAttentionParams params(int layer = 0) const {
    pe::PagedAttentionParams p;
    p.out = out_.data(), p.q = q_.data();
    p.out_head_stride = p.q_head_stride = heads_.head_dim;
    p.out_token_stride = p.q_token_stride = static_cast<int64_t>(heads_.num_heads) * heads_.head_dim;
    p.kv = view(static_cast<unsigned char*>(kv_.data()) + layer * 2 * block_elements() * pe::size_of(heads_.kv),
                num_blocks(), layers_);
    p.block_tables = table_.data(), p.block_table_stride = max_blocks();
    p.query_start = query_start_.data(), p.seq_lens = seq_lens_.data();
    p.num_seqs = static_cast<int64_t>(sequences_.size()), p.num_tokens = num_tokens();
    p.num_heads = heads_.num_heads, p.max_seq_len = max_seq_len();
    p.scale = 1 / std::sqrt(static_cast<float>(heads_.head_dim));
    return p;
  }

  double bytes() const {  // every key and value once, shared ones too, q and out once
    double keys = num_shared_;
    for (const Sequence& s : sequences_) keys += s.seq_len - num_shared_;
    return keys * heads_.num_kv_heads * heads_.head_dim * 2 * pe::size_of(heads_.kv) + 2.0 * q_.bytes();
  }
  double flops() const {
    double pairs = 0;
    for (const Sequence& s : sequences_) pairs += s.num_queries * (s.seq_len - (s.num_queries - 1) / 2.0);
    return 4 * pairs * heads_.num_heads * heads_.head_dim;
  }

  // Against pe::cpu on up to 8 sequences; NaN when an element was not written.
  double error() const {
    const Array out = download(out_, DType::kBF16);
    for (int64_t i = 0; i < out.size(); ++i)
      if (std::isnan(out.at(i))) return NAN;
    ErrorNorm norm;
    const int count = static_cast<int>(sequences_.size());
    for (int i = 0; i < std::min(count, 8); ++i) compare(out, count <= 8 ? i : i * (count - 1) / 7, norm);
    return norm.value();
  }

 private:
  int64_t block_elements() const { return static_cast<int64_t>(heads_.num_kv_heads) * kBlockSize * heads_.head_dim; }
  static int blocks_of(const Sequence& s) { return pe::div_ceil(s.seq_len, kBlockSize); }
  int64_t num_blocks() const {
    const int64_t shared = num_shared_ / kBlockSize;
    int64_t sum = shared;
    for (const Sequence& s : sequences_) sum += blocks_of(s) - shared;
    return sum;
  }
  int64_t num_tokens() const {
    int64_t sum = 0;
    for (const Sequence& s : sequences_) sum += s.num_queries;
    return sum;
  }
  int max_seq_len() const {
    int most = 0;
    for (const Sequence& s : sequences_) most = std::max(most, s.seq_len);
    return most;
  }
  int max_blocks() const { return pe::div_ceil(max_seq_len(), kBlockSize); }

  double kv_bytes() const {
    return 2.0 * static_cast<double>(num_blocks() * block_elements()) * static_cast<double>(pe::size_of(heads_.kv));
  }

  // A block is the K, then the V of one layer after the other, each [head][token][d].
  pe::PagedKV view(void* data, int64_t blocks, int layers) const {
    pe::PagedKV kv;
    kv.k = data;
    kv.v = static_cast<unsigned char*>(data) + block_elements() * pe::size_of(heads_.kv);
    kv.dtype = heads_.kv;
    kv.token_stride = heads_.head_dim, kv.head_stride = kBlockSize * heads_.head_dim,
    kv.block_stride = 2 * block_elements() * layers;
    kv.num_blocks = static_cast<int32_t>(blocks), kv.block_size = kBlockSize;
    kv.num_kv_heads = heads_.num_kv_heads, kv.head_dim = heads_.head_dim;
    return kv;
  }

  std::vector<int32_t> make_table() const {
    std::vector<int32_t> blocks(num_blocks());
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
    Random random(7);
    for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random.below(i)]);
    std::vector<int32_t> table(sequences_.size() * max_blocks(), -1);
    size_t next = 0;
    for (size_t s = 0; s < sequences_.size(); ++s)
      for (int b = 0; b < blocks_of(sequences_[s]); ++b)
        table[s * max_blocks() + b] = s > 0 && b < num_shared_ / kBlockSize ? table[b] : blocks[next++];
    return table;
  }
  std::vector<int32_t> make_query_start() const {
    std::vector<int32_t> starts = {0};
    for (const Sequence& s : sequences_) starts.push_back(starts.back() + s.num_queries);
    return starts;
  }
  std::vector<int32_t> make_seq_lens() const {
    std::vector<int32_t> lens;
    for (const Sequence& s : sequences_) lens.push_back(s.seq_len);
    return lens;
  }

  void compare(const Array& out, int s, ErrorNorm& norm) const {
    const Sequence& sequence = sequences_[s];
    const int blocks = blocks_of(sequence);
    Array cache(blocks * 2 * block_elements(), heads_.kv);
    std::vector<int32_t> table(blocks);
    const size_t block_bytes = 2 * block_elements() * pe::size_of(heads_.kv);
    for (int b = 0; b < blocks; ++b) {
      table[b] = b;
      BENCH_CHECK(cudaMemcpy(
          static_cast<unsigned char*>(cache.data()) + b * block_bytes,
          static_cast<const unsigned char*>(kv_.data()) + table_.host()[s * max_blocks() + b] * block_bytes * layers_,
          block_bytes, cudaMemcpyDeviceToHost));
    }
    constexpr int kRows = 16;
    std::vector<int> begins = {0};
    if (sequence.num_queries > kRows) {
      begins.push_back((sequence.num_queries - kRows) / 2);
      begins.push_back(sequence.num_queries - kRows);
    }
    for (const int begin : begins) {
      compare_rows(out, s, begin, std::min(kRows, sequence.num_queries), view(cache.data(), blocks, 1), table, norm);
    }
  }

  void compare_rows(const Array& out, int s, int begin, int rows, const pe::PagedKV& kv,
                    const std::vector<int32_t>& table, ErrorNorm& norm) const {
    const Sequence& sequence = sequences_[s];
    const int64_t row_size = static_cast<int64_t>(heads_.num_heads) * heads_.head_dim;
    const int64_t first = (query_start_.host()[s] + begin) * row_size;
    Array q(rows * row_size, DType::kBF16), want(rows * row_size, DType::kBF16);
    for (int64_t i = 0; i < q.size(); ++i) q.set(i, q_.at(first + i));
    const std::vector<int32_t> query_start = {0, rows},
                               seq_lens = {sequence.seq_len - sequence.num_queries + begin + rows};
    pe::PagedAttentionParams p = params();
    p.out = want.data(), p.q = q.data(), p.kv = kv;
    p.block_tables = table.data(), p.block_table_stride = static_cast<int64_t>(table.size());
    p.query_start = query_start.data(), p.seq_lens = seq_lens.data();
    p.num_seqs = 1, p.num_tokens = rows;
    pe::cpu::paged_attention(p);
    for (int64_t i = 0; i < want.size(); ++i) norm.add(out.at(first + i), want.at(i));
  }

  static constexpr double kKvBytes = 512 << 20;
  Heads heads_;
  std::vector<Sequence> sequences_;
  int num_shared_;
  int layers_;
  RandomTensor kv_, q_;
  DeviceMemory out_;
  DeviceVector<int32_t> table_, query_start_, seq_lens_;
};

void bench_batch(Report& report, const Gpu& gpu, const std::string& name, Heads heads, std::vector<Sequence> sequences,
                 int num_shared = 0) {
  if (!report.wants(name)) return;
  Batch batch(heads, std::move(sequences), num_shared);
  const pe::PagedAttentionParams p = batch.params();
  DeviceMemory plan(pe::cuda::attention_plan_bytes(p)), workspace(pe::cuda::attention_workspace_bytes(p));
  plan.poison(), workspace.poison();
  pe::cuda::attention_plan(p, plan.workspace(), gpu.stream());
  pe::cuda::paged_attention(p, plan.workspace(), workspace.workspace(), gpu.stream());
  gpu.wait();
  Case c;
  c.name = name;
  c.error = batch.error();
  c.tolerance = 2 * tolerance(DType::kBF16);  // the weights P are rounded as well as the result
  c.bytes = batch.bytes(), c.flops = batch.flops();
  if (Report::correct(c)) {
    c.times_us = replay_times_us(gpu, pe::round_up(std::max(4, batch.layers()), 2), [&](int i) {
      pe::PagedAttentionParams layer = batch.params(i % batch.layers());
      layer.turn = (i + 1) % 2;
      pe::cuda::paged_attention(layer, plan.workspace(), workspace.workspace(), gpu.stream());
    });
    const auto planning = gpu.time_us([&] { pe::cuda::attention_plan(p, plan.workspace(), gpu.stream()); });
    c.note = "plan " + micros(quantiles(planning).median) + " us";
  }
  report.add(c);
}

void decode(Report& report, const Gpu& gpu, Heads heads, int num_seqs, int seq_len) {
  bench_batch(report, gpu,
              std::string("paged_decode bf16 ") + heads.name + " S" + std::to_string(num_seqs) + " L" +
                  std::to_string(seq_len) + " bs16",
              heads, std::vector<Sequence>(num_seqs, {1, seq_len}));
}
void prefill(Report& report, const Gpu& gpu, Heads heads, int num_seqs, int num_queries, int seq_len) {
  bench_batch(report, gpu,
              std::string("paged_prefill bf16 ") + heads.name + " S" + std::to_string(num_seqs) + " Q" +
                  std::to_string(num_queries) + " L" + std::to_string(seq_len) + " bs16",
              heads, std::vector<Sequence>(num_seqs, {num_queries, seq_len}));
}

// Sequences that begin with the same tokens.
void shared_decode(Report& report, const Gpu& gpu, Heads heads, int num_seqs, int num_shared, int num_own) {
  bench_batch(report, gpu,
              std::string("paged_decode bf16 ") + heads.name + " S" + std::to_string(num_seqs) + " L" +
                  std::to_string(num_shared) + " shared + " + std::to_string(num_own) + " bs16",
              heads, std::vector<Sequence>(num_seqs, {1, num_shared + num_own}), num_shared);
}

void run(Report& report, const Gpu& gpu) {
  const int decodes[][2] = {{1, 1024},  {1, 16384},  {8, 4096},   {32, 1024}, {32, 8192},
                            {64, 2048}, {128, 1024}, {256, 1024}, {256, 2048}};
  for (const auto& d : decodes) {
    if (!report.options().quick || d[0] * d[1] <= 40000) decode(report, gpu, kLlama, d[0], d[1]);
  }
  for (const int num_seqs : {1, 32, 256}) decode(report, gpu, kSmol, num_seqs, 1024);
  const int shared_decodes[][3] = {{8, 1024, 192}, {32, 4096, 192}, {64, 1024, 512}, {512, 2048, 192}};
  for (const auto& d : shared_decodes) {
    if (!report.options().quick || d[0] <= 32) shared_decode(report, gpu, kLlama, d[0], d[1], d[2]);
  }
  const int prefills[][3] = {{1, 1024, 1024}, {1, 2048, 2048}, {1, 4096, 4096}, {1, 8192, 8192}, {1, 16384, 16384},
                             {8, 1024, 1024}, {16, 512, 512},  {1, 512, 4096},  {1, 512, 16384}};
  for (const auto& f : prefills) {
    if (!report.options().quick || f[2] <= 4096) prefill(report, gpu, kLlama, f[0], f[1], f[2]);
  }
  prefill(report, gpu, kSmol, 1, 2048, 2048);
  for (const auto& d : {decodes[0], decodes[1], decodes[4], decodes[5], decodes[7]}) {
    if (!report.options().quick || d[0] * d[1] <= 40000) decode(report, gpu, kLlamaFp8, d[0], d[1]);
  }
  decode(report, gpu, kSmolFp8, 256, 1024);
  for (const auto& f : {prefills[2], prefills[6]}) prefill(report, gpu, kLlamaFp8, f[0], f[1], f[2]);
  std::vector<Sequence> one_long(64, {1, 1024});
  one_long[17] = {1, 65536};
  bench_batch(report, gpu, "paged_decode bf16 H32/8 D128 1 x 65536 + 63 x 1024 bs16", kLlama, one_long);
  std::vector<Sequence> nano;  // the middle of the workload: context 100 .. 2048
  Random random(11);
  for (int i = 0; i < 200; ++i) nano.push_back({1, 100 + static_cast<int>(random.below(1024) + random.below(924))});
  bench_batch(report, gpu, "paged_decode bf16 H32/8 D128 nano 200 x 100 .. 2047 bs16", kLlama, nano);
  bench_batch(report, gpu, "paged_decode bf16 H9/3 D64 nano 200 x 100 .. 2047 bs16", kSmol, nano);
  std::vector<Sequence> mixed(64, {1, 1500});
  mixed.push_back({512, 2048});
  bench_batch(report, gpu, "paged_mixed bf16 H32/8 D128 64 x 1500 decode + 512 of 2048 prefill bs16", kLlama, mixed);
}

}  // namespace

int main(int argc, char** argv) { return bench::run_program(argc, argv, true, run); }
#else
int main() { return std::puts("built without CUDA") < 0 ? 1 : 2; }
#endif
