// SPDX-License-Identifier: Apache-2.0
// torch.ops.pyengine: per op, tensors are checked and turned into the params struct once, then run on the device they
// are on. CPU and CUDA register the same functions; a build without CUDA kernels registers them too, to say so instead
// of crashing.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/common/tuning.h"
#include "pe/activation.h"
#include "pe/kv_cache.h"
#include "pe/linear.h"
#include "pe/linear_silu_mul.h"
#include "pe/norm.h"
#include "pe/paged_attention.h"
#include "pe/parallel.h"
#include "pe/sampling.h"
#include "pe/step_inputs.h"
#include "torch/dispatch.h"
#include "torch/recorder.h"

namespace pe::torch_ops {
namespace {

// ---- dense layers
// ------------------------------------------------------------------------------------------------------

void rms_norm(const Tensor out, const Tensor x, const Tensor weight, double eps, const MaybeTensor residual) {
  Call call("rms_norm");
  Dim rows("rows"), cols("cols");
  FloatType dtype;
  RmsNormParams p;
  const Arg x_arg = call.arg("x", x).shape({&rows, &cols}).dtype(&dtype).rows();
  const Arg weight_arg = call.arg("weight", weight).shape({&cols}).dtype(&dtype).rows();
  const Arg out_arg = call.arg("out", out).shape({&rows, &cols}).dtype(&dtype).rows();
  if (residual) {
    const Arg residual_arg = call.arg("residual", *residual).shape({&rows, &cols}).dtype(&dtype).rows();
    p.residual = residual_arg.data<void>();
    p.residual_stride = residual_arg.stride(0);
  }
  p.out = out_arg.data<void>();
  p.x = x_arg.data<void>();
  p.weight = weight_arg.data<void>();
  p.rows = rows;
  p.cols = cols;
  p.out_stride = out_arg.stride(0);
  p.x_stride = x_arg.stride(0);
  p.eps = static_cast<float>(eps);
  p.dtype = dtype.value;
  PE_RUN(call, rms_norm, p);
}

void silu_mul(const Tensor out, const Tensor gate_up) {
  Call call("silu_mul");
  Dim rows("rows"), cols("cols"), both("2 * cols");
  FloatType dtype;
  SiluMulParams p;
  const Arg out_arg = call.arg("out", out).shape({&rows, &cols}).dtype(&dtype).rows();
  both.value = 2 * cols;
  const Arg gate_up_arg = call.arg("gate_up", gate_up).shape({&rows, &both}).dtype(&dtype).rows();
  p.out = out_arg.data<void>();
  p.gate_up = gate_up_arg.data<void>();
  p.rows = rows;
  p.cols = cols;
  p.out_stride = out_arg.stride(0);
  p.gate_up_stride = gate_up_arg.stride(0);
  p.dtype = dtype.value;
  PE_RUN(call, silu_mul, p);
}

int64_t packed_bytes(int64_t n, int64_t k, int64_t dtype) {
  const Call call("packed_bytes");
  return static_cast<int64_t>(cpu::packed_bytes(n, k, float_type_of(call, dtype)));
}

// Packing a shard at an offset is packing into the panels that begin there: a panel is 16 rows.
void pack_weight(const Tensor packed, const Tensor weight, int64_t n, int64_t row_offset) {
  Call call("pack_weight");
  constexpr int64_t kPanelRows = 16;
  Dim rows("rows"), k("k"), elements("packed elements");
  FloatType dtype;
  cpu::PackWeightParams p;
  const Arg weight_arg = call.arg("weight", weight).shape({&rows, &k}).dtype(&dtype).rows();
  const int64_t element_size = static_cast<int64_t>(size_of(dtype.value));
  elements.value = static_cast<int64_t>(cpu::packed_bytes(n, k, dtype.value)) / element_size;
  const Arg packed_arg = call.arg("packed", packed).shape({&elements}).dtype(&dtype).contiguous().aligned(64);
  call.check(row_offset >= 0 && row_offset % kPanelRows == 0,
             "row_offset must be a multiple of 16 (a panel of the packed layout)");
  if (row_offset + rows > n) {
    call.fail("rows [" + std::to_string(row_offset) + ", " + std::to_string(row_offset + rows) +
              ") do not fit into n=" + std::to_string(n));
  }
  p.out = packed_arg.data<char>() + row_offset * k * element_size;
  p.weight = weight_arg.data<void>();
  p.n = rows;
  p.k = k;
  p.weight_stride = weight_arg.stride(0);
  p.dtype = dtype.value;
  if (call.on_cuda()) call.fail("weights on CUDA are not packed; copy the rows instead");
  cpu::pack_weight(p);
}

// The packed weight of n rows and k columns: [n, k] on CUDA, panels on the CPU.
const void* packed_weight(Call& call, const Tensor& weight, Dim n, Dim k, FloatType dtype) {
  const Arg arg = call.arg("weight", weight);
  if (call.on_cuda()) return arg.shape({&n, &k}).dtype(&dtype).contiguous().data<void>();
  Dim elements("packed elements", static_cast<int64_t>(cpu::packed_bytes(n, k, dtype.value) / size_of(dtype.value)));
  return arg.shape({&elements}).dtype(&dtype).contiguous().aligned(64).data<void>();
}

void linear(const Tensor out, const Tensor x, const Tensor weight, const MaybeTensor bias,
            const MaybeTensor workspace) {
  Call call("linear");
  Dim m("m"), n("n"), k("k");
  FloatType dtype, out_dtype;
  LinearParams p;
  const Arg x_arg = call.arg("x", x).shape({&m, &k}).dtype(&dtype).rows();
  const Arg out_arg = call.arg("out", out).shape({&m, &n}).dtype(&out_dtype).rows();
  if (out_dtype.value != dtype.value && out_dtype.value != DType::kF32) {
    call.fail(std::string("out must be ") + name_of(dtype.value) + " like x, or f32, got " + name_of(out_dtype.value));
  }
  if (bias && out_dtype.value != dtype.value) call.fail("a bias needs an out of x's dtype");
  p.weight = packed_weight(call, weight, n, k, dtype);
  if (bias) p.bias = call.arg("bias", *bias).shape({&n}).dtype(&dtype).rows().data<void>();
  p.out = out_arg.data<void>();
  p.x = x_arg.data<void>();
  p.m = m;
  p.n = n;
  p.k = k;
  p.out_stride = out_arg.stride(0);
  p.x_stride = x_arg.stride(0);
  p.dtype = dtype.value;
  p.out_dtype = out_dtype.value;
  if (call.on_cuda()) {
    const Workspace scratch = workspace ? call.arg("workspace", *workspace).contiguous().bytes() : Workspace{};
    PE_ON_CUDA(call, cuda::linear(p, scratch, stream));
    (void)scratch;
  } else {
    cpu::linear(p);
  }
}

int64_t linear_workspace_bytes() {
#ifdef PE_CUDA
  return static_cast<int64_t>(cuda::linear_workspace_bytes());
#else
  return 0;
#endif
}

void linear_silu_mul(const Tensor out, const Tensor x, const Tensor weight, const Tensor gate_up) {
  Call call("linear_silu_mul");
  Dim m("m"), k("k"), cols("cols"), both("2 * cols");
  FloatType dtype;
  LinearSiluMulParams p;
  const Arg x_arg = call.arg("x", x).shape({&m, &k}).dtype(&dtype).rows();
  const Arg out_arg = call.arg("out", out).shape({&m, &cols}).dtype(&dtype).rows();
  both.value = 2 * cols;
  const Arg gate_up_arg = call.arg("gate_up", gate_up).shape({&m, &both}).dtype(&dtype).rows();
  p.weight = packed_weight(call, weight, both, k, dtype);
  p.out = out_arg.data<void>();
  p.gate_up = gate_up_arg.data<void>();
  p.x = x_arg.data<void>();
  p.m = m;
  p.cols = cols;
  p.k = k;
  p.out_stride = out_arg.stride(0);
  p.gate_up_stride = gate_up_arg.stride(0);
  p.x_stride = x_arg.stride(0);
  p.dtype = dtype.value;
  PE_RUN(call, linear_silu_mul, p);
}

void embedding(const Tensor out, const Tensor ids, const Tensor weight, int64_t vocab_size) {
  Call call("embedding");
  Dim num_tokens("num_tokens"), vocab("vocab_size", vocab_size), dim("dim");
  FloatType dtype;
  EmbeddingParams p;
  const Arg ids_arg = call.arg("ids", ids).shape({&num_tokens}).i32().rows();
  const Arg out_arg = call.arg("out", out).shape({&num_tokens, &dim}).dtype(&dtype).rows();
  p.weight = packed_weight(call, weight, vocab, dim, dtype);
  p.out = out_arg.data<void>();
  p.ids = ids_arg.data<int32_t>();
  p.num_tokens = num_tokens;
  p.vocab_size = vocab;
  p.dim = dim;
  p.out_stride = out_arg.stride(0);
  p.dtype = dtype.value;
  PE_RUN(call, embedding, p);
}

// ---- the KV cache
// ------------------------------------------------------------------------------------------------------

const float* kv_scale(Call& call, const char* name, const MaybeTensor& scale, Dim num_kv_heads) {
  return scale ? call.arg(name, *scale).shape({&num_kv_heads}).f32().rows().data<float>() : nullptr;
}

PagedKV make_paged_kv(Call& call, const Tensor& k_cache, const Tensor& v_cache, const MaybeTensor& k_scale,
                      const MaybeTensor& v_scale, FloatType dtype) {
  Dim num_blocks("num_blocks"), num_kv_heads("num_kv_heads"), block_size("block_size"), head_dim("head_dim");
  const Arg k =
      call.arg("k_cache", k_cache).shape({&num_blocks, &num_kv_heads, &block_size, &head_dim}).rows().aligned(16);
  const Arg v = call.arg("v_cache", v_cache)
                    .shape({&num_blocks, &num_kv_heads, &block_size, &head_dim})
                    .dtype(k.torch_dtype())
                    .rows()
                    .aligned(16);
  PagedKV kv;
  kv.dtype = k.kv_dtype(dtype);
  kv.k = k.data<void>();
  kv.v = v.data<void>();
  kv.block_stride = k.stride(0);
  kv.head_stride = k.stride(1);
  kv.token_stride = k.stride(2);
  kv.num_blocks = static_cast<int32_t>(num_blocks);
  kv.block_size = static_cast<int32_t>(block_size);
  kv.num_kv_heads = static_cast<int32_t>(num_kv_heads);
  kv.head_dim = static_cast<int32_t>(head_dim);
  for (int d = 0; d < 3; ++d) {
    if (k.stride(d) != v.stride(d)) call.fail("k_cache and v_cache must have equal strides");
    if (k.stride(d) * static_cast<int64_t>(size_of(kv.dtype)) % 16 != 0)
      call.fail("the caches' strides must be multiples of 16 bytes");
  }
  if (block_size < 16 || block_size > 256 || (block_size & (block_size - 1)) != 0) {
    call.fail("block_size must be 16, 32, 64, 128 or 256, got " + std::to_string(block_size));
  }
  call.check(kv.dtype == DType::kF8E4M3 || (!k_scale && !v_scale),
             "k_scale and v_scale are of caches in float8_e4m3fn, which these are not");
  kv.k_scale = kv_scale(call, "k_scale", k_scale, num_kv_heads);
  kv.v_scale = kv_scale(call, "v_scale", v_scale, num_kv_heads);
  return kv;
}

void rope_write_kv(const Tensor qkv, const Tensor positions, const Tensor slot_mapping, const MaybeTensor cos_sin,
                   const Tensor k_cache, const Tensor v_cache, int64_t num_heads, const MaybeTensor q_norm,
                   const MaybeTensor k_norm, double norm_eps, const MaybeTensor k_scale, const MaybeTensor v_scale) {
  Call call("rope_write_kv");
  Dim num_tokens("num_tokens"), max_position("max_position"), rotary_dim("rotary_dim");
  FloatType dtype;
  RopeWriteKvParams p;
  const Arg qkv_arg = call.arg("qkv", qkv).dtype(&dtype).rows();
  p.kv = make_paged_kv(call, k_cache, v_cache, k_scale, v_scale, dtype);
  Dim cols("(num_heads + 2 * num_kv_heads) * head_dim", (num_heads + 2 * p.kv.num_kv_heads) * p.kv.head_dim);
  Dim head_dim("head_dim", p.kv.head_dim);
  qkv_arg.shape({&num_tokens, &cols});
  p.positions = call.arg("positions", positions).shape({&num_tokens}).i32().rows().data<int32_t>();
  p.slot_mapping = call.arg("slot_mapping", slot_mapping).shape({&num_tokens}).i64().rows().data<int64_t>();
  if (cos_sin)
    p.cos_sin = call.arg("cos_sin", *cos_sin).shape({&max_position, &rotary_dim}).f32().contiguous().data<float>();
  if (q_norm) p.q_norm = call.arg("q_norm", *q_norm).shape({&head_dim}).dtype(&dtype).rows().data<void>();
  if (k_norm) p.k_norm = call.arg("k_norm", *k_norm).shape({&head_dim}).dtype(&dtype).rows().data<void>();
  if (cos_sin && (rotary_dim % 2 != 0 || rotary_dim > head_dim)) {
    call.fail("rotary_dim must be even and at most head_dim=" + std::to_string(head_dim) + ", got " +
              std::to_string(rotary_dim));
  }
  p.qkv = qkv_arg.data<void>();
  p.num_tokens = num_tokens;
  p.qkv_stride = qkv_arg.stride(0);
  p.max_position = cos_sin ? int64_t{max_position} : 0;
  p.num_heads = static_cast<int32_t>(num_heads);
  p.rotary_dim = cos_sin ? static_cast<int32_t>(rotary_dim) : 0;
  p.norm_eps = static_cast<float>(norm_eps);
  p.dtype = dtype.value;
  PE_RUN(call, rope_write_kv, p);
}

// [num_parts, num_blocks, ...] whose blocks are contiguous inside: how copy_blocks and swap_blocks see a cache.
struct Arena {
  char* data;
  int64_t num_parts, num_blocks, part_stride_bytes, block_stride_bytes, block_bytes;
};

Arena make_arena(const Call& call, const Arg& arg, const char* name) {
  if (arg.dim() < 3) call.fail(std::string(name) + " must have the shape [num_parts, num_blocks, ...]");
  const int64_t element = static_cast<int64_t>(arg.element_size());
  int64_t elements = 1;
  for (int64_t d = arg.dim() - 1; d >= 2; --d) {
    if (arg.size(d) > 1 && arg.stride(d) != elements)
      call.fail(std::string(name) + " must be contiguous inside each block");
    elements *= arg.size(d);
  }
  const Arena arena = {arg.data<char>(),        arg.size(0),       arg.size(1), arg.stride(0) * element,
                       arg.stride(1) * element, elements * element};
  if (arena.part_stride_bytes % 16 != 0 || arena.block_stride_bytes % 16 != 0 || arena.block_bytes % 16 != 0) {
    call.fail(std::string(name) + " must have blocks and strides that are multiples of 16 bytes, got blocks of " +
              std::to_string(arena.block_bytes));
  }
  return arena;
}

void copy_blocks(const Tensor arena, const Tensor pairs) {
  Call call("copy_blocks");
  Dim num_pairs("num_pairs"), two("2", 2);
  const Arena a = make_arena(call, call.arg("arena", arena).aligned(16), "arena");
  CopyBlocksParams p;
  p.pairs = call.arg("pairs", pairs).shape({&num_pairs, &two}).i32().contiguous().data<int32_t>();
  p.arena = a.data;
  p.num_parts = a.num_parts;
  p.part_stride_bytes = a.part_stride_bytes;
  p.block_stride_bytes = a.block_stride_bytes;
  p.block_bytes = a.block_bytes;
  p.num_pairs = num_pairs;
  PE_RUN(call, copy_blocks, p);
}

void swap_blocks(const Tensor dst, const Tensor src, const Tensor pairs) {
  Call call("swap_blocks"), host_call("swap_blocks");
  Dim num_pairs("num_pairs"), two("2", 2);
  const Arena to = make_arena(call, call.any_device("dst", dst).aligned(16), "dst");
  const Arena from = make_arena(call, call.any_device("src", src).aligned(16), "src");
  SwapBlocksParams p;
  p.pairs = host_call.arg("pairs", pairs).shape({&num_pairs, &two}).i32().contiguous().data<int32_t>();
  if (host_call.on_cuda()) call.fail("pairs must be in host memory");
  if (to.num_parts != from.num_parts || to.block_bytes != from.block_bytes)
    call.fail("dst and src must have equal parts and blocks");
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t source = p.pairs[2 * i], target = p.pairs[2 * i + 1];
    if (source < 0 || source >= from.num_blocks || target < 0 || target >= to.num_blocks) {
      call.fail("pair " + std::to_string(i) + " (" + std::to_string(source) + " -> " + std::to_string(target) +
                ") is outside src's " + std::to_string(from.num_blocks) + " or dst's " + std::to_string(to.num_blocks) +
                " blocks");
    }
  }
  p.dst = to.data;
  p.src = from.data;
  p.num_parts = to.num_parts;
  p.block_bytes = to.block_bytes;
  p.dst_part_stride_bytes = to.part_stride_bytes;
  p.dst_block_stride_bytes = to.block_stride_bytes;
  p.src_part_stride_bytes = from.part_stride_bytes;
  p.src_block_stride_bytes = from.block_stride_bytes;
  p.num_pairs = num_pairs;
  PE_RUN(call, swap_blocks, p);
}

// ---- attention
// ---------------------------------------------------------------------------------------------------------

void check_heads(const Call& call, int64_t num_heads, int64_t num_kv_heads) {
  if (num_kv_heads < 1 || num_heads < 1 || num_heads % num_kv_heads != 0) {
    call.fail("num_heads must be a multiple of num_kv_heads, got " + std::to_string(num_heads) + " and " +
              std::to_string(num_kv_heads));
  }
}

void set_block_tables(Call& call, const Tensor& block_tables, const MaybeTensor& table_rows, Dim& num_rows,
                      Dim& max_blocks, Dim& num_seqs, PagedAttentionParams& p) {
  const Arg tables = call.arg("block_tables", block_tables).shape({&num_rows, &max_blocks}).i32().rows();
  p.block_tables = tables.data<int32_t>();
  p.block_table_stride = tables.stride(0);
  if (table_rows) {
    p.table_rows = call.arg("table_rows", *table_rows).shape({&num_seqs}).i32().rows().data<int32_t>();
  } else if (num_rows < num_seqs) {
    call.fail("block_tables must have a row per sequence when there are no table_rows");
  }
}

void check_table_room(const Call& call, int64_t max_seq_len, int64_t max_blocks, int64_t block_size) {
  if (max_seq_len <= max_blocks * block_size) return;
  call.fail("max_seq_len " + std::to_string(max_seq_len) + " does not fit into block tables of " +
            std::to_string(max_blocks) + " blocks of " + std::to_string(block_size));
}

void paged_attention(const Tensor out, const Tensor q, const Tensor k_cache, const Tensor v_cache,
                     const Tensor block_tables, const MaybeTensor table_rows, const Tensor query_start,
                     const Tensor seq_lens, int64_t max_seq_len, double scale, int64_t window, const MaybeTensor plan,
                     const MaybeTensor workspace, bool settled, int64_t turn, const MaybeTensor k_scale,
                     const MaybeTensor v_scale) {
  Call call("paged_attention");
  Dim num_tokens("num_tokens"), num_heads("num_heads"), head_dim("head_dim"), num_seqs("num_seqs"),
      starts("num_seqs + 1");
  Dim num_rows("num_rows"), max_blocks("max_blocks");
  FloatType dtype;
  PagedAttentionParams p;
  const Arg q_arg = call.arg("q", q).shape({&num_tokens, &num_heads, &head_dim}).dtype(&dtype).rows().aligned(16);
  const Arg out_arg = call.arg("out", out).shape({&num_tokens, &num_heads, &head_dim}).dtype(&dtype).rows().aligned(16);
  p.kv = make_paged_kv(call, k_cache, v_cache, k_scale, v_scale, dtype);
  if (p.kv.head_dim != head_dim)
    call.fail("q and the caches must have the same head_dim, got " + std::to_string(head_dim) + " and " +
              std::to_string(p.kv.head_dim));
  check_heads(call, num_heads, p.kv.num_kv_heads);
  p.seq_lens = call.arg("seq_lens", seq_lens).shape({&num_seqs}).i32().rows().data<int32_t>();
  starts.value = num_seqs + 1;
  p.query_start = call.arg("query_start", query_start).shape({&starts}).i32().rows().data<int32_t>();
  set_block_tables(call, block_tables, table_rows, num_rows, max_blocks, num_seqs, p);
  check_table_room(call, max_seq_len, max_blocks, p.kv.block_size);
  if (window < 0) call.fail("window must be 0 (none) or more, got " + std::to_string(window));
  p.out = out_arg.data<void>();
  p.q = q_arg.data<void>();
  p.out_token_stride = out_arg.stride(0);
  p.out_head_stride = out_arg.stride(1);
  p.q_token_stride = q_arg.stride(0);
  p.q_head_stride = q_arg.stride(1);
  p.num_seqs = num_seqs;
  p.num_tokens = num_tokens;
  p.num_heads = static_cast<int32_t>(num_heads);
  p.max_seq_len = static_cast<int32_t>(max_seq_len);
  p.scale = static_cast<float>(scale);
  p.window = static_cast<int32_t>(window);
  p.settled = settled;
  if (turn != 0 && turn != 1) call.fail("turn must be 0 or 1, got " + std::to_string(turn));
  p.turn = static_cast<int32_t>(turn);
  p.dtype = dtype.value;
  if (!call.on_cuda()) return cpu::paged_attention(p);
  call.check(plan && workspace,
             "plan and workspace are required on CUDA; make them with make_attention_buffers and attention_plan");
  const Workspace plan_bytes = call.arg("plan", *plan).contiguous().aligned(256).bytes();
  const Workspace scratch = call.arg("workspace", *workspace).contiguous().aligned(256).bytes();
  PE_ON_CUDA(call, cuda::paged_attention(p, plan_bytes, scratch, stream));
  (void)plan_bytes;
  (void)scratch;
}

// What plan and workspace depend on: upper bounds, head counts and the cache's dtype, no pointers.
[[maybe_unused]] PagedAttentionParams attention_shape(const Call& call, int64_t num_seqs, int64_t num_tokens,
                                                      int64_t max_seq_len, int64_t num_heads, int64_t num_kv_heads,
                                                      int64_t head_dim, int64_t dtype) {
  check_heads(call, num_heads, num_kv_heads);
  PagedAttentionParams p;
  p.num_seqs = num_seqs;
  p.num_tokens = num_tokens;
  p.max_seq_len = static_cast<int32_t>(max_seq_len);
  p.num_heads = static_cast<int32_t>(num_heads);
  p.kv.num_kv_heads = static_cast<int32_t>(num_kv_heads);
  p.kv.head_dim = static_cast<int32_t>(head_dim);
  p.kv.dtype = kv_type_of(call, dtype);
  return p;
}

void attention_plan(const Tensor plan, const Tensor block_tables, const MaybeTensor table_rows,
                    const Tensor query_start, const Tensor seq_lens, int64_t block_size, int64_t num_tokens,
                    int64_t max_seq_len, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t window,
                    int64_t dtype) {
  Call call("attention_plan");
  Dim num_seqs("num_seqs"), starts("num_seqs + 1"), num_rows("num_rows"), max_blocks("max_blocks");
  const Workspace plan_bytes = call.arg("plan", plan).contiguous().aligned(256).bytes();
  const Arg lens = call.arg("seq_lens", seq_lens).shape({&num_seqs}).i32().rows();
  starts.value = num_seqs + 1;
  PagedAttentionParams p =
      attention_shape(call, num_seqs, num_tokens, max_seq_len, num_heads, num_kv_heads, head_dim, dtype);
  p.query_start = call.arg("query_start", query_start).shape({&starts}).i32().rows().data<int32_t>();
  p.seq_lens = lens.data<int32_t>();
  set_block_tables(call, block_tables, table_rows, num_rows, max_blocks, num_seqs, p);
  p.kv.block_size = static_cast<int32_t>(block_size);
  check_table_room(call, max_seq_len, max_blocks, p.kv.block_size);
  p.window = static_cast<int32_t>(window);
  if (call.on_cuda()) PE_ON_CUDA(call, cuda::attention_plan(p, plan_bytes, stream));
  (void)p, (void)plan_bytes;
}

std::tuple<int64_t, int64_t> attention_buffer_bytes(int64_t num_seqs, int64_t num_tokens, int64_t max_seq_len,
                                                    int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                                    int64_t dtype) {
  const Call call("attention_buffer_bytes");
  const PagedAttentionParams p =
      attention_shape(call, num_seqs, num_tokens, max_seq_len, num_heads, num_kv_heads, head_dim, dtype);
#ifdef PE_CUDA
  return {static_cast<int64_t>(cuda::attention_plan_bytes(p)),
          static_cast<int64_t>(cuda::attention_workspace_bytes(p))};
#else
  (void)p;
  return {0, 0};
#endif
}

// ---- sampling and the step
// ---------------------------------------------------------------------------------------------

void sample(const Tensor token_ids, const Tensor logits, const Tensor temperature, const Tensor top_k,
            const Tensor top_p, const Tensor min_p, const Tensor seeds, const Tensor positions,
            const MaybeTensor param_rows, const MaybeTensor workspace) {
  Call call("sample");
  Dim num_rows("num_rows"), vocab_size("vocab_size"), num_params("num_param_rows");
  SampleParams p;
  const Arg logits_arg = call.arg("logits", logits).shape({&num_rows, &vocab_size}).f32().rows();
  p.token_ids = call.arg("token_ids", token_ids).shape({&num_rows}).i32().rows().data<int32_t>();
  p.temperature = call.arg("temperature", temperature).shape({&num_params}).f32().rows().data<float>();
  p.top_k = call.arg("top_k", top_k).shape({&num_params}).i32().rows().data<int32_t>();
  p.top_p = call.arg("top_p", top_p).shape({&num_params}).f32().rows().data<float>();
  p.min_p = call.arg("min_p", min_p).shape({&num_params}).f32().rows().data<float>();
  p.seeds = call.arg("seeds", seeds).shape({&num_params}).i64().rows().data<int64_t>();
  p.positions = call.arg("positions", positions).shape({&num_rows}).i32().rows().data<int32_t>();
  if (param_rows) {
    p.param_rows = call.arg("param_rows", *param_rows).shape({&num_rows}).i32().rows().data<int32_t>();
  } else if (num_params < num_rows) {
    call.fail("there must be a parameter row per row of logits when there are no param_rows");
  }
  p.logits = logits_arg.data<float>();
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.logits_stride = logits_arg.stride(0);
  if (!call.on_cuda()) return cpu::sample(p);
  const Workspace scratch =
      workspace ? call.arg("workspace", *workspace).contiguous().aligned(256).bytes() : Workspace{};
  PE_ON_CUDA(call, cuda::sample(p, scratch, stream));
  (void)scratch;
}

int64_t sample_workspace_bytes([[maybe_unused]] int64_t num_rows, [[maybe_unused]] int64_t vocab_size) {
#ifdef PE_CUDA
  return static_cast<int64_t>(cuda::sample_workspace_bytes(num_rows, vocab_size));
#else
  return 0;
#endif
}

void step_inputs(const Tensor last_tokens, const Tensor block_tables, int64_t block_size, const Tensor rows,
                 const Tensor num_new_tokens, const Tensor num_computed, const Tensor prompt_offsets,
                 const Tensor prompt_ids, const Tensor query_start, const Tensor seq_lens, const Tensor input_ids,
                 const Tensor positions, const Tensor slot_mapping, const Tensor last_indices) {
  Call call("step_inputs");
  Dim num_rows("num_rows"), max_blocks("max_blocks"), num_seqs("num_seqs"), starts("num_seqs + 1"),
      num_prompt("num_prompt_ids");
  Dim num_tokens("num_tokens");
  StepInputsParams p;
  p.last_tokens = call.arg("last_tokens", last_tokens).shape({&num_rows}).i32().rows().data<int32_t>();
  const Arg tables = call.arg("block_tables", block_tables).shape({&num_rows, &max_blocks}).i32().rows();
  p.block_tables = tables.data<int32_t>();
  p.block_table_stride = tables.stride(0);
  p.block_size = static_cast<int32_t>(block_size);
  p.rows = call.arg("rows", rows).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.num_new_tokens = call.arg("num_new_tokens", num_new_tokens).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.num_computed = call.arg("num_computed", num_computed).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.prompt_offsets = call.arg("prompt_offsets", prompt_offsets).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.prompt_ids = call.arg("prompt_ids", prompt_ids).shape({&num_prompt}).i32().rows().data<int32_t>();
  starts.value = num_seqs + 1;
  p.query_start = call.arg("query_start", query_start).shape({&starts}).i32().rows().data<int32_t>();
  p.seq_lens = call.arg("seq_lens", seq_lens).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.input_ids = call.arg("input_ids", input_ids).shape({&num_tokens}).i32().rows().data<int32_t>();
  p.positions = call.arg("positions", positions).shape({&num_tokens}).i32().rows().data<int32_t>();
  p.slot_mapping = call.arg("slot_mapping", slot_mapping).shape({&num_tokens}).i64().rows().data<int64_t>();
  p.last_indices = call.arg("last_indices", last_indices).shape({&num_seqs}).i32().rows().data<int32_t>();
  p.num_seqs = num_seqs;
  p.num_tokens = num_tokens;
  if (block_size < 1) call.fail("block_size must be positive, got " + std::to_string(block_size));
  PE_RUN(call, step_inputs, p);
}

void store_tokens(const Tensor last_tokens, const Tensor rows, const Tensor token_ids) {
  Call call("store_tokens");
  Dim num_rows("num_rows"), num_sampled("num_sampled");
  StoreTokensParams p;
  p.last_tokens = call.arg("last_tokens", last_tokens).shape({&num_rows}).i32().rows().data<int32_t>();
  p.rows = call.arg("rows", rows).shape({&num_sampled}).i32().rows().data<int32_t>();
  p.token_ids = call.arg("token_ids", token_ids).shape({&num_sampled}).i32().rows().data<int32_t>();
  p.num_sampled = num_sampled;
  PE_RUN(call, store_tokens, p);
}

void update_block_tables(const Tensor block_tables, const Tensor entries) {
  Call call("update_block_tables");
  Dim num_rows("num_rows"), max_blocks("max_blocks"), num_entries("num_entries"), three("3", 3);
  UpdateBlockTablesParams p;
  const Arg tables = call.arg("block_tables", block_tables).shape({&num_rows, &max_blocks}).i32().rows();
  p.entries = call.arg("entries", entries).shape({&num_entries, &three}).i32().contiguous().data<int32_t>();
  p.block_tables = tables.data<int32_t>();
  p.block_table_stride = tables.stride(0);
  p.num_entries = num_entries;
  PE_RUN(call, update_block_tables, p);
}

void gather_rows(const Tensor out, const Tensor x, const Tensor indices) {
  Call call("gather_rows");
  Dim num_rows("num_rows"), cols("cols"), num_indices("num_indices");
  FloatType dtype;
  GatherRowsParams p;
  const Arg x_arg = call.arg("x", x).shape({&num_rows, &cols}).dtype(&dtype).rows();
  const Arg out_arg = call.arg("out", out).shape({&num_indices, &cols}).dtype(&dtype).rows();
  p.indices = call.arg("indices", indices).shape({&num_indices}).i32().rows().data<int32_t>();
  p.out = out_arg.data<void>();
  p.x = x_arg.data<void>();
  p.num_indices = num_indices;
  p.cols = cols;
  p.out_stride = out_arg.stride(0);
  p.x_stride = x_arg.stride(0);
  p.dtype = dtype.value;
  PE_RUN(call, gather_rows, p);
}

// ---- the CPU backend
// ---------------------------------------------------------------------------------------------------

void set_num_threads(int64_t n) {
  PE_CHECK("set_num_threads", n >= 1 && n <= 4096, "n must be in [1, 4096], got " + std::to_string(n));
  cpu::set_num_threads(static_cast<int>(n));
}
int64_t num_threads() { return cpu::num_threads(); }
void set_isa(const std::string name) { cpu::set_isa(name); }
std::string isa() { return cpu::isa(); }
void set_tuning(const std::string name, int64_t value) {
#ifdef PE_CUDA
  cuda::set_tuning(name, value);
#else
  throw_error("set_tuning",
              "there is nothing to set without CUDA kernels, got " + name + " = " + std::to_string(value));
#endif
}
std::string build_info() { return PE_VERSION " " PE_SCHEMA_HASH " " PE_CUDA_VERSION; }

// The ops that take tensors, for one dispatch key.
void register_tensor_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("silu_mul", TORCH_BOX(&silu_mul));
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_silu_mul", TORCH_BOX(&linear_silu_mul));
  m.impl("embedding", TORCH_BOX(&embedding));
  m.impl("rope_write_kv", TORCH_BOX(&rope_write_kv));
  m.impl("copy_blocks", TORCH_BOX(&copy_blocks));
  m.impl("swap_blocks", TORCH_BOX(&swap_blocks));
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("attention_plan", TORCH_BOX(&attention_plan));
  m.impl("sample", TORCH_BOX(&sample));
  m.impl("step_inputs", TORCH_BOX(&step_inputs));
  m.impl("store_tokens", TORCH_BOX(&store_tokens));
  m.impl("update_block_tables", TORCH_BOX(&update_block_tables));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyengine, CPU, m) { register_tensor_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pyengine, CUDA, m) { register_tensor_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pyengine, CompositeExplicitAutograd, m) {
  m.impl("packed_bytes", TORCH_BOX(&packed_bytes));
  m.impl("linear_workspace_bytes", TORCH_BOX(&linear_workspace_bytes));
  m.impl("attention_buffer_bytes", TORCH_BOX(&attention_buffer_bytes));
  m.impl("sample_workspace_bytes", TORCH_BOX(&sample_workspace_bytes));
  m.impl("set_num_threads", TORCH_BOX(&set_num_threads));
  m.impl("num_threads", TORCH_BOX(&num_threads));
  m.impl("set_isa", TORCH_BOX(&set_isa));
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("record_begin", TORCH_BOX(&record_begin));
  m.impl("record_end", TORCH_BOX(&record_end));
  m.impl("record_replay", TORCH_BOX(&record_replay));
  m.impl("record_free", TORCH_BOX(&record_free));
  m.impl("set_tuning", TORCH_BOX(&set_tuning));
  m.impl("build_info", TORCH_BOX(&build_info));
}

}  // namespace pe::torch_ops
