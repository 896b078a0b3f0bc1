#include "coordinator/model/attention.h"

#include "common/kernels/linear.h"
#include "common/kernels/rms_norm.h"
#include "common/kernels/rope.h"

namespace expertmesh {

Attention::Attention(AttentionSpec spec, std::size_t hidden, WeightLoader const& loader)
    : spec_(std::move(spec)), heads_(std::get<GroupedProjection>(spec_.projection)) {
  std::size_t const q_rows = spec_.num_heads * heads_.head_dim;
  std::size_t const kv_rows = heads_.num_kv_heads * heads_.head_dim;
  qkv_ = loader.packed(
      {{heads_.q.weight.name, q_rows}, {heads_.k.weight.name, kv_rows}, {heads_.v.weight.name, kv_rows}}, hidden);
  o_ = loader.packed({{spec_.o.weight.name, hidden}}, q_rows);
  if (heads_.q_norm) q_norm_ = loader.floats(*heads_.q_norm->weight, heads_.head_dim);
  if (heads_.k_norm) k_norm_ = loader.floats(*heads_.k_norm->weight, heads_.head_dim);
}

void Attention::forward(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles,
                        TokenPlaces const& places, KvLayer& cache, Activations& act, MatrixView<float> out) const {
  std::size_t const tokens = x.rows;
  std::size_t const q_columns = spec_.num_heads * heads_.head_dim;
  std::size_t const kv_columns = heads_.num_kv_heads * heads_.head_dim;
  MatrixView<float> const qkv = act.qkv.view().first_rows(tokens).columns(0, qkv_.n());
  MatrixView<float> const q = qkv.columns(0, q_columns);
  MatrixView<float> const k = qkv.columns(q_columns, kv_columns);
  MatrixView<float> const v = qkv.columns(q_columns + kv_columns, kv_columns);

  linear(exec, x, qkv_, qkv);
  if (heads_.q_norm) rms_norm_heads(exec, q, spec_.num_heads, q_norm_, heads_.q_norm->epsilon);
  if (heads_.k_norm) rms_norm_heads(exec, k, heads_.num_kv_heads, k_norm_, heads_.k_norm->epsilon);
  if (spec_.rope.kind != RopeKind::none) {
    apply_rope(exec, q, spec_.num_heads, angles.cos, angles.sin);
    apply_rope(exec, k, heads_.num_kv_heads, angles.cos, angles.sin);
  }
  kv_write(exec, k, v, places, cache);

  MatrixView<float> const heads = act.attention.view().first_rows(tokens).columns(0, q_columns);  // [T,Q*D]
  paged_attention(exec, q, places, cache,
                  {.num_heads = spec_.num_heads, .scale = spec_.softmax_scale, .span = spec_.span}, heads);
  linear(exec, heads, o_, out);
}

}  // namespace expertmesh
