// SPDX-License-Identifier: Apache-2.0
// Geometries under which attention is tested: how many CTAs, how decodes are worked on, whether chunks are shared.
#pragma once
#include "cuda/attention/schedule.cuh"

namespace pe::cuda {

using attention::Geometry;

inline Geometry ctas(int num_ctas, int num_slots = attention::kShallowSlots, bool by_cta = false) {
  Geometry g;
  g.num_ctas = num_ctas;
  g.num_slots = num_slots;
  g.by_cta = by_cta;
  return g;
}
inline Geometry decoding_by_cta(int num_ctas) { return ctas(num_ctas, attention::kShallowSlots, true); }
// Warps whose rings the copy engine fills.
inline Geometry by_boxes(int num_ctas) {
  Geometry g = ctas(num_ctas);
  g.by_boxes = true;
  return g;
}
// Of a cache in e4m3, whose rows have half as many 16-bit words, ask with half the dim.
constexpr int deep_slots(int dim) { return attention::kDeepRingBytes / (attention::kSlabTokens * (dim / 8 | 1) * 16); }

inline Geometry sharing(Geometry g) {
  g.shares = true;
  return g;
}

// What a plan, or a run by it, shares.
struct Shared {
  int num_rows, num_items, num_states;
};

}  // namespace pe::cuda
