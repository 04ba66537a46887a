// SPDX-License-Identifier: Apache-2.0
// The plan of paged attention under the emulator: which pieces it lists, in which order, inside which bounds.
//
// kernels: attention
#include <algorithm>
#include <map>
#include <set>

#include "attention_geometry.h"
#include "harness.h"

namespace pe::cuda {
namespace {

using attention::Item;
using attention::Plan;
using test::Buffer;

struct Seq {
  int len, num_queries;
};

struct PlanCase {
  std::vector<Seq> seqs;
  int group, num_kv_heads, window, num_ctas;
  bool by_cta = false, by_boxes = false;
};

// What a plan must be: every chunk of every tile once, longest pieces first, inside its bounds, partial rows apart.
struct PlanFacts {
  int num_cta_items, num_warp_items, num_splits;
  int64_t longest_warp_piece;
  bool by_cta;
};

PlanFacts check_plan(const PlanCase& c) {
  Buffer<int32_t> query_start(static_cast<int64_t>(c.seqs.size()) + 1), seq_lens(static_cast<int64_t>(c.seqs.size()));
  PagedAttentionParams p;
  query_start[0] = 0;
  for (size_t s = 0; s < c.seqs.size(); ++s) {
    query_start[static_cast<int64_t>(s) + 1] = query_start[static_cast<int64_t>(s)] + c.seqs[s].num_queries;
    seq_lens[static_cast<int64_t>(s)] = c.seqs[s].len;
    p.max_seq_len = std::max(p.max_seq_len, c.seqs[s].len);
  }
  p.query_start = query_start.data();
  p.seq_lens = seq_lens.data();
  p.num_seqs = static_cast<int64_t>(c.seqs.size());
  p.num_tokens = query_start[p.num_seqs];
  p.num_heads = c.group * c.num_kv_heads;
  p.kv.num_kv_heads = c.num_kv_heads;
  p.kv.head_dim = 128;
  p.window = c.window;
  Geometry geometry = ctas(c.num_ctas, attention::kShallowSlots, c.by_cta);
  geometry.by_boxes = c.by_boxes;
  Buffer<char> memory(static_cast<int64_t>(attention::plan_bytes(p, geometry)));
  attention::plan(p, geometry, {memory.data(), static_cast<size_t>(memory.size())}, nullptr);
  EXPECT(memory.guards_intact(), "the plan wrote past its memory");
  EXPECT(attention_workspace_bytes(p) <= size_t{160} << 20, "workspace of %zu bytes", attention_workspace_bytes(p));

  Plan plan;
  const attention::PlanBounds bounds = attention::plan_bounds(p, geometry);
  attention::lay_out(bounds, memory.data(), &plan);
  const attention::Header& header = *plan.header;
  EXPECT(header.num_cta_items <= bounds.cta_items && header.num_warp_items <= bounds.warp_items &&
             int64_t{header.num_splits} * c.num_kv_heads <= bounds.arrivals && header.num_splits <= bounds.splits &&
             header.num_merge_rows <= bounds.merge_rows,
         "lists longer than their bounds: %d %d %d %d", header.num_cta_items, header.num_warp_items, header.num_splits,
         header.num_merge_rows);
  int64_t chunks[2] = {0, 0};
  int longest_tile = 0;
  for (const Seq& s : c.seqs) {
    const attention::TileShape shape = attention::tile_shape(s.num_queries * c.group);
    for (int i = 0; i < shape.num_tiles; ++i) {
      const attention::Tile tile = attention::make_tile(0, i, s.num_queries, s.len, c.group, c.window);
      chunks[shape.on_cta] += tile.chunk_end - tile.chunk_begin;
      if (!shape.on_cta) longest_tile = std::max(longest_tile, tile.chunk_end - tile.chunk_begin);
    }
  }
  const attention::PieceLimits limits =
      attention::piece_limits(chunks[1], chunks[0], longest_tile, c.num_kv_heads, c.num_ctas, c.by_cta, c.by_boxes);
  std::map<std::pair<int, int>, std::vector<Item>> tiles;
  int64_t longest = 0;
  for (const bool on_cta : {true, false}) {
    const Item* items = on_cta ? plan.cta_items : plan.warp_items;
    const int num_items = on_cta ? header.num_cta_items : header.num_warp_items;
    for (int i = 0; i < num_items; ++i) {
      tiles[{items[i].seq, items[i].first_row}].push_back(items[i]);
      EXPECT(items[i].chunk_end > items[i].chunk_begin, "an empty piece");
      if (!on_cta) longest = std::max<int64_t>(longest, items[i].chunk_end - items[i].chunk_begin);
    }
    const int limit = (on_cta ? limits.cta : limits.warp).whole;
    const auto bucket = [&](int i) {
      return attention::length_bucket(items[i].chunk_end - items[i].chunk_begin, limit);
    };
    for (int i = 1; i < num_items; ++i) EXPECT(bucket(i - 1) <= bucket(i), "longest first");
  }
  size_t num_tiles = 0;
  std::set<std::pair<int64_t, int64_t>> partials;
  for (const Seq& s : c.seqs) {
    const int rows = s.num_queries * c.group,
              step = rows > attention::kMaxRowsOnWarps ? attention::kCtaRows : attention::kWarpRows;
    for (int row = 0; row < rows; row += step, ++num_tiles) {
      std::vector<Item>& pieces = tiles[{static_cast<int>(&s - c.seqs.data()), row}];
      std::sort(pieces.begin(), pieces.end(),
                [](const Item& a, const Item& b) { return a.chunk_begin < b.chunk_begin; });
      const int num_rows = std::min(step, rows - row), first_position = s.len - s.num_queries + row / c.group;
      const int last_position = s.len - s.num_queries + (row + num_rows - 1) / c.group;
      int chunk = c.window == 0 ? 0 : std::max(0, first_position - c.window + 1) / kChunkTokens;
      for (const Item& piece : pieces) {
        EXPECT(piece.chunk_begin == chunk, "a chunk is missing or twice");
        EXPECT((piece.split >= 0) == (pieces.size() > 1) && piece.folds == (&piece == &pieces[0]), "kinds of pieces");
        if (piece.split >= 0) {
          const int64_t states = piece.folds != 0 ? 1 : piece.chunk_end - piece.chunk_begin;
          partials.insert({piece.state, piece.state + states * num_rows});
        }
        chunk = piece.chunk_end;
      }
      EXPECT(chunk == last_position / kChunkTokens + 1, "chunks at the end are missing: %d", chunk);
    }
  }
  EXPECT(num_tiles == tiles.size(), "tiles of nobody");
  int64_t end = 0;
  for (const auto& [from, to] : partials) {
    EXPECT(from == end, "partial results overlap or leave a hole");
    end = to;
  }
  EXPECT(end <= attention::partial_rows(p), "partial results past the workspace");
  return {header.num_cta_items, header.num_warp_items, header.num_splits, longest, header.decodes_by_cta != 0};
}

void test_plan() {
  std::vector<Seq> uniform(256, Seq{1024, 1});
  EXPECT(check_plan({uniform, 4, 8, 0, 132}).num_splits == 0, "256 x 1024 needs no splitting");
  std::vector<Seq> skewed(64, Seq{1000, 1});
  skewed[37].len = 65536;
  const PlanFacts facts = check_plan({skewed, 4, 8, 0, 132});
  EXPECT(facts.num_splits == 1 && facts.longest_warp_piece <= 8,
         "one long sequence is spread: %d splits, pieces up to %d", facts.num_splits,
         static_cast<int>(facts.longest_warp_piece));
  EXPECT(check_plan({{{1024, 1}}, 4, 8, 0, 132}).num_warp_items == 4, "batch 1: a chunk a warp");
  const PlanFacts few = check_plan({{{1024, 1}}, 4, 8, 0, 132, true});
  EXPECT(few.num_warp_items == 4 && few.by_cta, "few chunks: a chunk a CTA");
  EXPECT(check_plan({skewed, 4, 8, 0, 132, true}).by_cta, "one long sequence: CTAs decode");
  EXPECT(!check_plan({uniform, 4, 8, 0, 132, true}).by_cta, "much of equal length: warps decode");
  const PlanFacts pairs = check_plan({skewed, 4, 8, 0, 132, true, true});
  EXPECT(!pairs.by_cta && pairs.num_splits == 1 && pairs.longest_warp_piece == 8,
         "one long sequence by pairs, of which each has 7.6 chunks: pieces up to %d",
         static_cast<int>(pairs.longest_warp_piece));
  std::vector<Seq> longer(64, Seq{2048, 1});
  longer[3].len = 3840;  // less than twice the average
  EXPECT(check_plan({longer, 4, 8, 0, 132, true, true}).num_splits == 0, "somewhat longer: whole");
  EXPECT(check_plan({{{16384, 2048}}, 4, 8, 0, 132}).num_splits == 0, "a prefill chunk has tiles enough");
  EXPECT(check_plan({{{16384, 16}}, 4, 8, 0, 132}).num_splits == 1, "64 rows over a long context are split");
  check_plan({{{1 << 20, 1}, {5, 5}, {0, 0}}, 8, 1, 0, 132});
  check_plan({std::vector<Seq>(200, Seq{1 << 20, 1}), 16, 1, 0, 132});  // more partial results than room
  check_plan({{}, 4, 8, 0, 132});
  check_plan({{{4000, 3000}, {3000, 1}, {700, 9}}, 3, 3, 1000, 78});
  test::Random random(3);
  for (int i = 0; i < 30; ++i) {
    PlanCase c{{},
               static_cast<int>(1 + random.below(9)),
               static_cast<int>(1 + random.below(8)),
               i % 3 == 0 ? static_cast<int>(1 + random.below(2000)) : 0,
               static_cast<int>(1 + random.below(140)),
               i % 2 == 0};
    for (int64_t n = random.below(600); n > 0; --n) {
      const int len = static_cast<int>(1 + random.below(random.below(20) == 0 ? 50000 : 1500));
      const int num_queries = random.below(8) == 0 ? static_cast<int>(1 + random.below(len)) : 1;
      c.seqs.push_back({len, random.below(10) == 0 ? 0 : num_queries});
    }
    check_plan(c);
  }
}

// ---- chunks that sequences share -----------------------------------------------------------------------------------

// A plan of sequences that share `shared` tokens in blocks of 16: lens of them, a query each.
Shared check_shared_plan(const std::vector<int>& lens, int shared, int group, int num_kv_heads, int num_ctas) {
  const auto num_seqs = static_cast<int64_t>(lens.size());
  const int64_t stride = div_ceil(*std::max_element(lens.begin(), lens.end()), 16);
  Buffer<int32_t> query_start(num_seqs + 1), seq_lens(num_seqs), tables(num_seqs * stride);
  for (int64_t s = 0; s <= num_seqs; ++s) query_start[s] = static_cast<int32_t>(s);
  for (int64_t s = 0; s < num_seqs; ++s) {
    seq_lens[s] = lens[s];
    for (int64_t i = 0; i < stride; ++i)
      tables[s * stride + i] = static_cast<int32_t>(i < shared / 16 ? i : s + 100000);
  }
  PagedAttentionParams p;
  p.block_tables = tables.data();
  p.block_table_stride = stride;
  p.query_start = query_start.data();
  p.seq_lens = seq_lens.data();
  p.max_seq_len = static_cast<int32_t>(stride * 16);
  p.num_seqs = p.num_tokens = num_seqs;
  p.num_heads = group * num_kv_heads;
  p.kv.num_kv_heads = num_kv_heads;
  p.kv.head_dim = 128;
  const Geometry geometry = sharing(ctas(num_ctas));
  Buffer<char> memory(static_cast<int64_t>(attention::plan_bytes(p, geometry)));
  attention::plan(p, geometry, {memory.data(), static_cast<size_t>(memory.size())}, nullptr);
  EXPECT(memory.guards_intact(), "the plan wrote past its memory");
  Plan plan;
  attention::lay_out(attention::plan_bounds(p, geometry), memory.data(), &plan);
  const attention::Header& header = *plan.header;

  std::map<int, int> shared_until;  // by sequence
  std::set<std::pair<int, int>> rows;
  int num_states = 0;
  for (int i = 0; i < header.num_shared_rows; ++i) {
    const attention::SharedRow& row = plan.shared_rows[i];
    const attention::Group& g = plan.groups[row.group];
    EXPECT(rows.insert({row.token, row.head}).second && row.head < group, "a row is gathered twice");
    EXPECT(i >= g.first_row && i < g.first_row + g.num_rows && g.num_chunks <= shared / kChunkTokens, "a row's group");
    EXPECT(g.state >= attention::split_partial_rows(p) &&
               g.state + int64_t{g.num_states} * g.num_rows <= attention::partial_rows(p),
           "states past the workspace");
    shared_until[row.token] = g.num_chunks;
    num_states = std::max(num_states, g.num_states);
  }
  EXPECT(static_cast<int>(shared_until.size()) * group == header.num_shared_rows, "all rows of a sequence");
  int64_t gathered = 0, own = 0;  // chunks x rows
  for (int i = 0; i < header.num_cta_items; ++i) {
    const Item& item = plan.cta_items[i];
    const attention::Group& g = plan.groups[plan.shared_rows[item.shared].group];
    gathered += int64_t{item.chunk_end - item.chunk_begin} *
                std::min(attention::kCtaRows, g.first_row + g.num_rows - item.shared);
    EXPECT(item.seq == g.leader && (item.folds != 0) == (item.chunk_begin == 0), "an item of a group");
  }
  for (int i = 0; i < header.num_warp_items; ++i) {
    const Item& item = plan.warp_items[i];
    own += int64_t{item.chunk_end - item.chunk_begin} * group;
    EXPECT((item.shared >= 0) == (shared_until.count(item.seq) != 0), "who goes on from shared chunks");
    if (item.shared >= 0) EXPECT(plan.shared_rows[item.shared].token == item.seq, "from its own rows");
    EXPECT(item.folds == 0 || item.chunk_begin == (item.shared >= 0 ? shared_until[item.seq] : 0), "own chunks");
  }
  int64_t all = 0;
  for (const int len : lens) all += div_ceil(len, kChunkTokens) * group;
  EXPECT(gathered + own == all, "chunks x rows: %d shared, %d own of %d", static_cast<int>(gathered),
         static_cast<int>(own), static_cast<int>(all));
  return {header.num_shared_rows, header.num_cta_items, num_states};
}

void test_shared_plan() {
  Shared plan = check_shared_plan(std::vector<int>(512, 2048 + 192), 2048, 4, 8, 132);
  EXPECT(plan.num_rows == 2048 && plan.num_items == 16 && plan.num_states == 1, "512 sequences: 16 whole tiles");
  plan = check_shared_plan(std::vector<int>(8, 4096), 4000, 4, 8, 132);
  EXPECT(plan.num_items >= 6, "few sequences: their chunks go round the SMs, %d pieces", plan.num_items);
  // 33 KB of partial results per row: room for 2016 rows. With few rows left over, tiles stay whole.
  EXPECT(check_shared_plan(std::vector<int>(504, 2200), 2048, 4, 64, 132).num_rows == 2016, "just fits");
  EXPECT(check_shared_plan(std::vector<int>(505, 2200), 2048, 4, 64, 132).num_rows == 0, "no room, no sharing");
  EXPECT(check_shared_plan(std::vector<int>(32, 40000), 39000, 4, 64, 132).num_states <= 15, "states as there is room");
  test::Random random(5);
  for (int i = 0; i < 20; ++i) {
    const int shared = static_cast<int>(random.below(6000));
    std::vector<int> lens;
    for (int64_t n = 1 + random.below(300); n > 0; --n)
      lens.push_back(
          static_cast<int>(1 + random.below(4) * shared / 3 + random.below(random.below(9) == 0 ? 9000 : 400)));
    check_shared_plan(lens, shared, static_cast<int>(1 + random.below(8)), static_cast<int>(1 + random.below(8)),
                      static_cast<int>(1 + random.below(140)));
  }
}

}  // namespace
}  // namespace pe::cuda

int main() {
  pe::cuda::test_plan();
  pe::cuda::test_shared_plan();
  return pe::test::report("attention_plan");
}
