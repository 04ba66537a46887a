// SPDX-License-Identifier: Apache-2.0
// The planner's search for sequences whose block tables begin with the same physical blocks: the part of a prompt that
// many requests have in common. Such a group's rows are gathered into tiles of 128 and computed by CTAs, so that its
// chunks are read once and not once per sequence; each sequence's own tile begins behind them, with their state.
//
// No bit depends on it: the same chunks are computed by the same arithmetic and merged in the same order, in one state
// that starts on a CTA and goes on in a warp. What is compared is physical blocks, never contents.
//
// A round: sequences with the same first chunk meet in a hash table; each compares its table with that of the first of
// them, the leader; the group then takes the number of chunks that spares most reads, over all its sequences that share
// as many. Those that share fewer try again in the next round, under a leader from among them.
// traffic: the first chunk's table entries of all sequences on warps, and all shared ones of groups; about 1 us without
// groups, 8 us for 512 sequences that share 2048 tokens in blocks of 16
#pragma once
#include "cuda/attention/schedule.cuh"
#include "cuda/common/reduce.cuh"

namespace pe::cuda::attention {

constexpr int kPlanThreads = 1024;

constexpr int kTableSlots = 2048, kMaxProbes = 64;
constexpr int kMatchLevels = 16;  // by powers of two

// Share::group of a sequence that has none, and of one that looks for one; num_chunks is then the slot of its key.
constexpr int kNoGroup = -1, kSeeksGroup = -2;

struct FoundGroup {
  int leader, num_chunks;  // 0 chunks: given up
  int num_rows, num_warp_tiles;
  int first_row, first_tile;
  int num_listed_rows;
};

struct SharedPrefixes {
  uint32_t keys[kTableSlots];  // 0: free
  int leaders[kTableSlots];    // the lowest sequence of the key
  int slots[kTableSlots];      // sequences of the key, then its group
  FoundGroup groups[kMaxGroups];
  int match_counts[kMaxGroups][kMatchLevels];  // sequences by the chunks that they share with the leader
  int least_match[kMaxGroups][kMatchLevels];
  int64_t scan[kPlanThreads / kWarpSize], saved[kPlanThreads / kWarpSize];
  int num_groups, num_rows, num_tiles;  // the latter two: of groups that stay
  int some_seek;
};

__device__ __forceinline__ const int32_t* block_table(const PlanArgs& args, int seq) {
  const int64_t row = args.table_rows == nullptr ? seq : args.table_rows[seq];
  return args.block_tables + row * args.block_table_stride;
}
__device__ __forceinline__ int sharable_chunks(const PlanArgs& args, int seq) {
  return sharable_chunks(args.query_start[seq + 1] - args.query_start[seq], args.seq_lens[seq], args.group,
                         args.window);
}

// Of the first chunk's blocks; never 0.
__device__ inline uint32_t first_chunk_key(const PlanArgs& args, int seq) {
  const int32_t* const table = block_table(args, seq);
  const int count = kChunkTokens >> args.block_shift;
  uint32_t key = 0;
#pragma unroll
  for (int i = 0; i < kChunkSlabs; ++i) {  // blocks are no smaller than slabs
    key = (key ^ static_cast<uint32_t>(i < count ? table[i] : 0)) * 0x9E3779B1u;
  }
  key ^= key >> 16;
  return key == 0 ? 1 : key;
}

// Slot of the key, entered where it is new; -1 where the table is too full.
__device__ inline int find_slot(SharedPrefixes& found, uint32_t key) {
  for (int probe = 0; probe < kMaxProbes; ++probe) {
    const int slot = static_cast<int>((key + static_cast<uint32_t>(probe)) % kTableSlots);
    const uint32_t there = atomicCAS(&found.keys[slot], 0u, key);
    if (there == 0 || there == key) return slot;
  }
  return -1;
}

// Chunks, at most `limit`, for which two tables are equal. All lanes of a warp call.
__device__ inline int matching_chunks(const int32_t* a, const int32_t* b, int limit, int chunk_blocks) {
  constexpr int kInFlight = 8;
  const int count = limit * chunk_blocks;
  for (int begin = 0; begin < count; begin += kInFlight * kWarpSize) {
    bool differs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = begin + i * kWarpSize + lane_id();
      differs[i] = at < count && __ldg(a + at) != __ldg(b + at);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const unsigned which = __ballot_sync(kFullMask, differs[i]);
      if (which != 0) return (begin + i * kWarpSize + __ffs(static_cast<int>(which)) - 1) / chunk_blocks;
    }
  }
  return limit;
}

__device__ __forceinline__ int match_level(int num_chunks) { return min(31 - __clz(num_chunks), kMatchLevels - 1); }

// Those who seek a group meet at the slots of their keys.
__device__ inline void meet(const PlanArgs& args, SharedPrefixes& found) {
  const int tid = static_cast<int>(threadIdx.x);
  for (int slot = tid; slot < kTableSlots; slot += kPlanThreads) {
    found.keys[slot] = 0;
    found.leaders[slot] = 0x7fffffff;
    found.slots[slot] = 0;
  }
  __syncthreads();
  for (int seq = tid; seq < args.num_seqs; seq += kPlanThreads) {
    Share& share = args.plan.shares[seq];
    if (share.group != kSeeksGroup) continue;
    const int slot = find_slot(found, first_chunk_key(args, seq));
    share = slot < 0 ? Share{kNoGroup, 0} : Share{kSeeksGroup, slot};
    if (slot < 0) continue;
    atomicMin(&found.leaders[slot], seq);
    atomicAdd(&found.slots[slot], 1);
  }
  __syncthreads();
}

// A leader of enough sequences opens a group.
__device__ inline void open_groups(const PlanArgs& args, SharedPrefixes& found) {
  for (int seq = static_cast<int>(threadIdx.x); seq < args.num_seqs; seq += kPlanThreads) {
    const Share share = args.plan.shares[seq];
    if (share.group != kSeeksGroup || found.leaders[share.num_chunks] != seq) continue;
    int& slot = found.slots[share.num_chunks];
    const int group = slot < kMinSharers ? kMaxGroups : atomicAdd(&found.num_groups, 1);
    slot = group < kMaxGroups ? group : kNoGroup;
    if (group >= kMaxGroups) continue;
    found.groups[group] = FoundGroup{seq, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < kMatchLevels; ++i) {
      found.match_counts[group][i] = 0;
      found.least_match[group][i] = 0x7fffffff;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) found.num_groups = min(found.num_groups, kMaxGroups);
}

// One warp per sequence: how much it shares with its group's leader. Who shares nothing seeks on.
__device__ inline void match_tables(const PlanArgs& args, SharedPrefixes& found) {
  const int chunk_blocks = kChunkTokens >> args.block_shift;
  for (int seq = warp_id(); seq < args.num_seqs; seq += kPlanThreads / kWarpSize) {
    Share share = args.plan.shares[seq];
    if (share.group != kSeeksGroup) continue;
    const int group = found.slots[share.num_chunks];
    __syncwarp();  // all lanes have read it
    if (group != kNoGroup) {
      const int leader = found.groups[group].leader;
      const int limit = min(sharable_chunks(args, seq), sharable_chunks(args, leader));
      const int match = seq == leader
                            ? limit
                            : matching_chunks(block_table(args, seq), block_table(args, leader), limit, chunk_blocks);
      share.num_chunks = match;
      if (lane_id() == 0 && match > 0) {
        atomicAdd(&found.match_counts[group][match_level(match)], 1);
        atomicMin(&found.least_match[group][match_level(match)], match);
      }
    }
    if (lane_id() == 0) args.plan.shares[seq] = Share{group, share.num_chunks};
  }
  __syncthreads();
}

// One thread per group opened in this round: the number of chunks that spares most reads.
__device__ inline void choose_chunks(SharedPrefixes& found, int first_group) {
  const int group = first_group + static_cast<int>(threadIdx.x);
  if (group < found.num_groups) {
    int count = 0, best = 0, most = 0;
    for (int level = kMatchLevels - 1; level >= 0; --level) {
      if (found.match_counts[group][level] == 0) continue;
      count += found.match_counts[group][level];
      const int num_chunks = found.least_match[group][level];
      if (count < kMinSharers || (count - 1) * num_chunks <= most) continue;
      most = (count - 1) * num_chunks;
      best = num_chunks;
    }
    found.groups[group].num_chunks = best;
  }
  __syncthreads();
}

// Who shares that many is in; who shares less seeks on.
__device__ inline void join_groups(const PlanArgs& args, SharedPrefixes& found, int first_group) {
  for (int seq = static_cast<int>(threadIdx.x); seq < args.num_seqs; seq += kPlanThreads) {
    const Share share = args.plan.shares[seq];
    if (share.group < first_group) continue;
    FoundGroup& group = found.groups[share.group];
    if (group.num_chunks == 0 || share.num_chunks < group.num_chunks) {
      args.plan.shares[seq] = Share{group.num_chunks == 0 ? kNoGroup : kSeeksGroup, 0};
      if (group.num_chunks != 0) found.some_seek = 1;
      continue;
    }
    const int num_rows = (args.query_start[seq + 1] - args.query_start[seq]) * args.group;
    atomicAdd(&group.num_rows, num_rows);
    atomicAdd(&group.num_warp_tiles, tile_shape(num_rows).num_tiles);
  }
  __syncthreads();
}

// Gives groups their places among rows and tiles. They stay if all of them together spare enough, and as far as there
// is room for a state of each of their rows.
__device__ inline void settle_groups(const PlanArgs& args, SharedPrefixes& found) {
  static_assert(kMaxGroups <= kPlanThreads, "a thread per group");
  const int index = static_cast<int>(threadIdx.x);
  const bool exists = index < found.num_groups && found.groups[index].num_chunks > 0;
  const FoundGroup group = exists ? found.groups[index] : FoundGroup{0, 0, 0, 0, 0, 0, 0};
  const int64_t num_tiles = num_shared_tiles(group.num_rows);
  int64_t total = 0;
  const int64_t before = block_exclusive_sum<kPlanThreads>(num_tiles << 32 | group.num_rows, found.scan, &total);
  const int64_t saved =
      block_sum<kPlanThreads>(saved_chunks(group.num_warp_tiles, group.num_rows, group.num_chunks), found.saved);
  const int first_row = static_cast<int>(before), first_tile = static_cast<int>(before >> 32);
  const bool stays = exists && sharing_pays(saved, args.num_kv_heads, args.num_ctas) &&
                     first_row + group.num_rows <= args.num_shared_partial_rows;
  if (index < found.num_groups) {
    found.groups[index].first_row = first_row;
    found.groups[index].first_tile = first_tile;
    if (!stays) found.groups[index].num_chunks = 0;
  }
  if (stays) {
    atomicMax(&found.num_rows, first_row + group.num_rows);
    atomicMax(&found.num_tiles, first_tile + static_cast<int>(num_tiles));
  }
  __syncthreads();
}

// plan.shares and the groups of this step. All threads call; ends behind a barrier.
__device__ inline void find_groups(const PlanArgs& args, SharedPrefixes& found) {
  const int tid = static_cast<int>(threadIdx.x);
  if (tid == 0) found.num_groups = found.num_rows = found.num_tiles = found.some_seek = 0;
  __syncthreads();
  for (int seq = tid; seq < args.num_seqs; seq += kPlanThreads) {
    const bool seeks = args.shares && sharable_chunks(args, seq) > 0;
    args.plan.shares[seq] = Share{seeks ? kSeeksGroup : kNoGroup, 0};
    if (seeks) found.some_seek = 1;
  }
  __syncthreads();
  for (int round = 0; round < kGroupRounds; ++round) {
    const int first_group = found.num_groups;
    const bool some_seek = found.some_seek != 0;
    __syncthreads();
    if (!some_seek || first_group >= kMaxGroups) break;
    if (tid == 0) found.some_seek = 0;
    meet(args, found);
    open_groups(args, found);
    __syncthreads();
    if (found.num_groups == first_group) break;
    match_tables(args, found);
    choose_chunks(found, first_group);
    join_groups(args, found, first_group);
  }
  if (found.num_groups > 0) settle_groups(args, found);
}

// The group of a sequence, nullptr without.
__device__ __forceinline__ FoundGroup* group_of(const PlanArgs& args, SharedPrefixes& found, int seq) {
  const int group = args.plan.shares[seq].group;
  return group < 0 || found.groups[group].num_chunks == 0 ? nullptr : &found.groups[group];
}

// Lists a sequence's rows in its group; returns the place of the first.
__device__ inline int list_shared_rows(const PlanArgs& args, FoundGroup& group, int seq, int num_rows) {
  const int first = group.first_row + atomicAdd(&group.num_listed_rows, num_rows), token = args.query_start[seq];
  for (int row = 0; row < num_rows; ++row) {
    args.plan.shared_rows[first + row] =
        SharedRow{token + row / args.group, row % args.group, args.plan.shares[seq].group, 0};
  }
  return first;
}

// One thread per group: books its states, cuts its tiles and lists them behind the others. Each row of any group may
// have as many states as there is room for if all have them.
__device__ inline void list_shared_tiles(const PlanArgs& args, const SharedPrefixes& found, int piece_limit,
                                         int first_tile, int* num_splits) {
  const int index = static_cast<int>(threadIdx.x);
  if (index >= found.num_groups || found.groups[index].num_chunks == 0) return;
  const FoundGroup& from = found.groups[index];
  const int64_t max_states = args.num_shared_partial_rows / found.num_rows;
  const int pieces = shared_pieces(from.num_chunks, piece_limit, max_states);
  const int num_tiles = num_shared_tiles(from.num_rows);
  const Group group{from.leader,
                    from.num_chunks,
                    from.first_row,
                    from.num_rows,
                    static_cast<int>(args.num_split_partial_rows + max_states * from.first_row),
                    num_partial_states(from.num_chunks, pieces),
                    pieces,
                    atomicAdd(num_splits, num_tiles)};
  args.plan.groups[index] = group;
  for (int i = 0; i < num_tiles; ++i) {
    const int row = i * kCtaRows, num_rows = min(kCtaRows, group.num_rows - row), split = group.split + i;
    args.plan.splits[split] =
        Split{group.leader, row, group.num_rows, group.num_states, group.state + row, pieces, {0, 0}};
    args.plan.tiles[first_tile + from.first_tile + i] =
        Tile{group.leader, row, num_rows, 0, group.num_chunks, 1, pieces, split, group.first_row + row};
  }
}

}  // namespace pe::cuda::attention
