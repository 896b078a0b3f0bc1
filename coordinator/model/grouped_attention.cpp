#include "common/kernels/rms_norm.h"
#include "common/kernels/rope.h"
#include "common/kernels/rows.h"
#include "coordinator/model/attention.h"
#include "coordinator/model/query_temperature.h"

namespace expertmesh {

std::optional<GroupedAttention::HeadNorm> GroupedAttention::head_norm(std::optional<QkNormSpec> const& spec,
                                                                      std::size_t num_heads, std::size_t head_dim,
                                                                      WeightLoader const& loader) {
  if (!spec) return std::nullopt;
  HeadNorm norm{.spec = *spec, .weight = {}};
  if (spec->weight)
    norm.weight = loader.floats(*spec->weight, spec->scope == QkNormScope::head ? head_dim : num_heads * head_dim);
  return norm;
}

GroupedAttention::GroupedAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader) {
  auto const& p = std::get<GroupedProjection>(spec.projection);
  num_kv_heads_ = p.num_kv_heads;
  head_dim_ = p.head_dim;
  clip_ = p.clip;
  std::size_t const q_rows = spec.num_heads * head_dim_;
  std::size_t const kv_rows = num_kv_heads_ * head_dim_;
  qkv_ = loader.linear(
      {{p.q.weight, q_rows, p.q.bias}, {p.k.weight, kv_rows, p.k.bias}, {p.v.weight, kv_rows, p.v.bias}}, hidden);
  q_norm_ = head_norm(p.q_norm, spec.num_heads, head_dim_, loader);
  k_norm_ = head_norm(p.k_norm, num_kv_heads_, head_dim_, loader);
}

void GroupedAttention::normalise(Exec const& exec, bool after_rope, MatrixView<float> q, std::size_t num_heads,
                                 MatrixView<float> k) const {
  auto const apply = [&](std::optional<HeadNorm> const& norm, MatrixView<float> x, std::size_t heads) {
    if (!norm || norm->spec.after_rope != after_rope) return;
    rms_norm_heads(exec, x, norm->spec.scope == QkNormScope::head ? heads : 1, norm->weight.span(), norm->spec.epsilon);
  };
  apply(q_norm_, q, num_heads);
  apply(k_norm_, k, num_kv_heads_);
}

GroupedAttention::Projected GroupedAttention::project(AttentionStep const& step, AttentionSpec const& spec,
                                                      MatrixView<float const> x) const {
  Exec const& exec = step.exec;
  std::size_t const q_columns = spec.num_heads * head_dim_;
  std::size_t const kv_columns = num_kv_heads_ * head_dim_;
  MatrixView<float> const qkv = step.act.qkv.view().first_rows(x.rows).columns(0, q_columns + 2 * kv_columns);
  MatrixView<float> const q = qkv.columns(0, q_columns);
  MatrixView<float> const k = qkv.columns(q_columns, kv_columns);
  MatrixView<float> const v = qkv.columns(q_columns + kv_columns, kv_columns);

  linear(exec, x, qkv_, qkv);
  normalise(exec, false, q, spec.num_heads, k);
  if (clip_) clip(exec, qkv, *clip_);
  if (spec.rope.kind != RopeKind::none) {
    RopeHeads heads{.num_heads = spec.num_heads, .head_dim = head_dim_, .interleaved = spec.rope.interleaved};
    apply_rope(exec, q, heads, step.angles.cos, step.angles.sin);
    heads.num_heads = num_kv_heads_;
    apply_rope(exec, k, heads, step.angles.cos, step.angles.sin);
  }
  normalise(exec, true, q, spec.num_heads, k);
  if (spec.temperature) apply_temperature(exec, *spec.temperature, step.places, q);
  return {q, k, v};
}

void GroupedAttention::forward(AttentionStep const& step, AttentionSpec const& spec, std::span<float const> sinks,
                               MatrixView<float const> x, MatrixView<float> out) const {
  auto const [q, k, v] = project(step, spec, x);
  kv_write(step.exec, k, v, step.places, step.cache);
  paged_attention(
      step.exec, q, step.places, step.cache,
      {.num_heads = spec.num_heads, .scale = spec.softmax_scale, .span = spec.span, .sinks = sinks, .bias = step.bias},
      out);
}

void GroupedAttention::write(AttentionStep const& step, AttentionSpec const& spec, MatrixView<float const> x) const {
  auto const [q, k, v] = project(step, spec, x);
  kv_write(step.exec, k, v, step.places, step.cache);
}

std::size_t GroupedAttention::size_bytes() const {
  std::size_t const norms = (q_norm_ ? q_norm_->weight.size() : 0) + (k_norm_ ? k_norm_->weight.size() : 0);
  return qkv_.size_bytes() + norms * sizeof(float);
}

}  // namespace expertmesh
