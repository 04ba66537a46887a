// SPDX-License-Identifier: Apache-2.0
// Paged attention on the CPU: cuts the step into tiles of queries and chunks of keys, deals them out, merges what was
// dealt apart.
//
// The dealing is a static partition of one line on which all (tile, chunk) pairs lie in order, cut where the estimated
// work is equal. A tile whose chunks all fall to one thread is finished there; of a tile that a cut goes through, every
// chunk is kept apart and merged in ascending order afterwards. Both ways take the same steps in the same order, so the
// cuts change no bit.
//
// Scratch: each thread keeps one buffer and the caller one for the partial results. They grow to the largest call seen
// and are then reused, so that nothing is allocated once the engine is warm.
#include <algorithm>
#include <memory>
#include <vector>

#include "isa.h"
#include "paged_attention_tile.h"
#include "pe/parallel.h"
#include "run.h"

namespace pe::cpu {
namespace {

constexpr const char* kOp = "paged_attention";
constexpr int64_t kStagingRows = 16;        // widening a tile of K and V costs about as much as this many rows of it
constexpr int64_t kWorkPerThread = 500000;  // multiply-adds: several times what waking a thread takes

class Scratch {
 public:
  float* at_least(size_t floats) {
    if (floats > size_) {
      buffer_.reset(new float[floats + kAlign]);
      size_ = floats;
    }
    const auto address = reinterpret_cast<uintptr_t>(buffer_.get());
    return reinterpret_cast<float*>(round_up<uintptr_t>(address, kAlign * sizeof(float)));
  }

 private:
  static constexpr size_t kAlign = 16;  // 64 bytes
  std::unique_ptr<float[]> buffer_;
  size_t size_ = 0;
};

struct WorkItem {
  QueryTile tile;
  int64_t first_key = 0;                   // the oldest key that any row of the tile sees
  int64_t first_chunk = 0, end_chunk = 0;  // the chunks that hold such keys
  int64_t rows = 0, work_per_key = 0;
  int64_t work_begin = 0;      // on the line of all work
  int64_t partial_begin = -1;  // where its chunks are kept when threads share it; -1: one thread has it all
};

// One call: the items, their order on the line, and where it is cut.
class AttentionCall {
 public:
  explicit AttentionCall(const PagedAttentionParams& p, const AttentionKernel& kernel, std::vector<WorkItem>* items)
      : p_(p), kernel_(kernel), items_(*items) {
    items_.clear();
    for (int64_t s = 0; s < p.num_seqs; ++s) add_sequence(static_cast<int32_t>(s));
    num_shares_ = std::clamp<int64_t>(total_work_ / kWorkPerThread, 1, num_threads());
    for (size_t i = 0; i + 1 < items_.size(); ++i) items_[i].tile.upcoming = &items_[i + 1].tile;
    for (WorkItem& item : items_) {
      if (!is_shared(item)) continue;
      item.partial_begin = partial_floats_;
      partial_floats_ += (item.end_chunk - item.first_chunk) * state_floats(item.rows, p.kv.head_dim);
    }
  }

  void run(Scratch* partials) {
    partials_ = partials->at_least(static_cast<size_t>(partial_floats_));
    parallel_for(num_shares_, 1, [this](int64_t begin, int64_t end) {
      for (int64_t share = begin; share < end; ++share) run_share(share);
    });
    if (partial_floats_ == 0) return;
    parallel_for(static_cast<int64_t>(items_.size()), 1, [this](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (items_[i].partial_begin >= 0) merge_partials(items_[i]);
      }
    });
  }

 private:
  void add_sequence(int32_t seq) {
    const int64_t first = p_.query_start[seq], num_queries = p_.query_start[seq + 1] - first, len = p_.seq_lens[seq];
    if (num_queries == 0) return;
    PE_CHECK(kOp, num_queries > 0 && first >= 0 && first + num_queries <= p_.num_tokens && len >= num_queries,
             "sequence " + std::to_string(seq) + " has query rows [" + std::to_string(first) + ", " +
                 std::to_string(first + num_queries) + ") and " + std::to_string(len) +
                 " tokens; expected ascending rows below num_tokens " + std::to_string(p_.num_tokens) +
                 " and at least as many tokens as rows");
    const int64_t group = p_.num_heads / p_.kv.num_kv_heads, step = std::max<int64_t>(1, kRowsPerTile / group);
    for (int32_t head = 0; head < p_.kv.num_kv_heads; ++head) {
      for (int64_t q = 0; q < num_queries; q += step) {
        WorkItem item;
        item.tile = {seq, head, first + q, len - num_queries + q, std::min(step, num_queries - q), nullptr};
        item.first_key = p_.window > 0 ? std::max<int64_t>(0, item.tile.first_position - p_.window + 1) : 0;
        item.first_chunk = item.first_key / kChunkTokens;
        item.end_chunk = item.tile.last_position() / kChunkTokens + 1;
        item.rows = item.tile.num_queries * group;
        item.work_per_key = (item.rows + kStagingRows) * 2 * p_.kv.head_dim;
        item.work_begin = total_work_;
        total_work_ += (item.tile.last_position() + 1 - item.first_key) * item.work_per_key;
        items_.push_back(item);
      }
    }
  }

  int64_t cut(int64_t share) const {
    return static_cast<int64_t>(static_cast<double>(total_work_) * static_cast<double>(share) /
                                static_cast<double>(num_shares_));
  }

  // The first chunk of the item that begins at or past the cut.
  int64_t chunk_at(const WorkItem& item, int64_t cut) const {
    if (cut <= item.work_begin) return item.first_chunk;
    const int64_t keys = div_ceil(cut - item.work_begin, item.work_per_key);
    return std::min(div_ceil<int64_t>(item.first_key + keys, kChunkTokens), item.end_chunk);
  }

  bool is_shared(const WorkItem& item) const {
    // The share that holds the item's beginning, give or take the rounding of cut().
    int64_t share = static_cast<int64_t>(static_cast<double>(item.work_begin) / static_cast<double>(total_work_) *
                                         static_cast<double>(num_shares_)) -
                    1;
    for (share = std::max<int64_t>(share, 0); share <= num_shares_; ++share) {
      const int64_t chunk = chunk_at(item, cut(share));
      if (chunk > item.first_chunk) return chunk < item.end_chunk;
    }
    return false;
  }

  void run_share(int64_t share) const {
    static thread_local Scratch scratch;
    const int64_t begin = cut(share), end = cut(share + 1);
    auto item = std::upper_bound(items_.begin(), items_.end(), begin,
                                 [](int64_t work, const WorkItem& other) { return work < other.work_begin; });
    if (item != items_.begin()) --item;  // its later chunks may be past the cut
    for (; item != items_.end() && item->work_begin < end; ++item) {
      const int64_t first = chunk_at(*item, begin);
      const int64_t last = share + 1 == num_shares_ ? item->end_chunk : chunk_at(*item, end);
      if (first < last) run_chunks(*item, first, last, &scratch);
    }
  }

  void run_chunks(const WorkItem& item, int64_t first, int64_t last, Scratch* scratch) const {
    const int64_t dim = p_.kv.head_dim, state_size = state_floats(item.rows, dim);
    float* q = scratch->at_least(static_cast<size_t>(query_floats(item.rows, dim) + kv_floats(dim) + 2 * state_size));
    float* kv = q + query_floats(item.rows, dim);
    float* states = kv + kv_floats(dim);
    kernel_.load_queries(p_, item.tile, q);
    if (item.partial_begin >= 0) {
      for (int64_t chunk = first; chunk < last; ++chunk)
        kernel_.attend(p_, item.tile, chunk, q, kv, partial(item, chunk));
      return;
    }
    const SoftmaxState total = state_at(states, item.rows), next = state_at(states + state_size, item.rows);
    kernel_.attend(p_, item.tile, first, q, kv, total);
    for (int64_t chunk = first + 1; chunk < last; ++chunk) {
      kernel_.attend(p_, item.tile, chunk, q, kv, next);
      kernel_.merge(item.rows, dim, next, total);
    }
    kernel_.store(p_, item.tile, total);
  }

  SoftmaxState partial(const WorkItem& item, int64_t chunk) const {
    const int64_t index = chunk - item.first_chunk;
    return state_at(partials_ + item.partial_begin + index * state_floats(item.rows, p_.kv.head_dim), item.rows);
  }

  void merge_partials(const WorkItem& item) const {
    const SoftmaxState total = partial(item, item.first_chunk);
    for (int64_t chunk = item.first_chunk + 1; chunk < item.end_chunk; ++chunk) {
      kernel_.merge(item.rows, p_.kv.head_dim, partial(item, chunk), total);
    }
    kernel_.store(p_, item.tile, total);
  }

  const PagedAttentionParams& p_;
  const AttentionKernel& kernel_;
  std::vector<WorkItem>& items_;
  int64_t total_work_ = 0, num_shares_ = 1, partial_floats_ = 0;
  float* partials_ = nullptr;
};

const AttentionKernel& kernel_of(DType dtype, DType stored, int64_t head_dim) {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::kAmx:
      return attention_amx(dtype, stored, head_dim);
    case Isa::kAvx512Bf16:
      return attention_avx512(dtype, stored, head_dim);
    case Isa::kAvx2:
      return attention_avx2(dtype, stored, head_dim);
    case Isa::kGeneric:
      break;
  }
#endif
  return attention_generic(dtype, stored, head_dim);
}

void check(const PagedAttentionParams& p) {
  const PagedKV& kv = p.kv;
  PE_CHECK(kOp, kv.head_dim > 0 && kv.head_dim <= 256 && kv.head_dim % 8 == 0,
           "head_dim must be a multiple of 8, at most 256, got " + std::to_string(kv.head_dim));
  PE_CHECK(kOp, kv.num_kv_heads > 0 && p.num_heads > 0 && p.num_heads % kv.num_kv_heads == 0,
           "num_heads must be a multiple of num_kv_heads, got " + std::to_string(p.num_heads) + " and " +
               std::to_string(kv.num_kv_heads));
  PE_CHECK(kOp, kv.block_size >= 16 && kv.block_size <= 256 && (kv.block_size & (kv.block_size - 1)) == 0,
           "block_size must be a power of two from 16 to 256, got " + std::to_string(kv.block_size));
  PE_CHECK(
      kOp, kv.dtype == p.dtype || kv.dtype == DType::kF8E4M3,
      std::string("the cache must have the dtype of q, ") + name_of(p.dtype) + ", or f8e4m3, got " + name_of(kv.dtype));
  PE_CHECK(kOp, p.window >= 0, "window must not be negative (0: none), got " + std::to_string(p.window));
  PE_CHECK(kOp, p.num_seqs >= 0 && p.num_tokens >= 0, "num_seqs and num_tokens must not be negative");
}

}  // namespace

void paged_attention(const PagedAttentionParams& params) {
  check(params);
  run(params, [](const PagedAttentionParams& p) {
    static thread_local std::vector<WorkItem> items;
    static thread_local Scratch partials;
    AttentionCall(p, kernel_of(p.dtype, p.kv.dtype, p.kv.head_dim), &items).run(&partials);
  });
}

}  // namespace pe::cpu
