#include <algorithm>

#include "common/kernels/headwise_linear.h"
#include "common/kernels/rope.h"
#include "common/kernels/rows.h"
#include "coordinator/model/attention.h"
#include "coordinator/model/query_temperature.h"

namespace expertmesh {
namespace {

LatentProjection const& latent_of(AttentionSpec const& spec) {
  return std::get<LatentProjection>(spec.projection);
}

// q_a, if there is one, above kv_a.
PackedLinear load_down(LatentProjection const& p, std::size_t hidden, WeightLoader const& loader) {
  LinearPart const kv{p.kv_a.weight, p.kv_rank + p.rope_dim, p.kv_a.bias};
  if (!p.q_a) return loader.linear({kv}, hidden);
  return loader.linear({{p.q_a->weight, p.q_rank, p.q_a->bias}, kv}, hidden);
}

}  // namespace

LatentAttention::LatentAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader)
    : q_rank_(latent_of(spec).q_rank),
      kv_rank_(latent_of(spec).kv_rank),
      nope_dim_(latent_of(spec).nope_dim),
      rope_dim_(latent_of(spec).rope_dim),
      value_dim_(latent_of(spec).value_dim),
      down_(load_down(latent_of(spec), hidden, loader)),
      kv_a_norm_(latent_of(spec).kv_a_norm, kv_rank_, loader) {
  LatentProjection const& p = latent_of(spec);
  if (p.q_a_norm) q_a_norm_.emplace(*p.q_a_norm, q_rank_, loader);
  q_b_ =
      loader.linear({{p.q_b.weight, spec.num_heads * (nope_dim_ + rope_dim_), p.q_b.bias}}, p.q_a ? q_rank_ : hidden);

  // A head's rows of kv_b: W_UK [nope,C], then W_UV [value,C].
  std::size_t const head_rows = nope_dim_ + value_dim_;
  Matrix<float> const kv_b = loader.numbers(p.kv_b, spec.num_heads * head_rows, kv_rank_);
  Matrix<float> transposed(kv_rank_, nope_dim_);
  for (std::size_t head = 0; head < spec.num_heads; ++head) {
    MatrixView<float const> const rows = kv_b.view().row_range(head * head_rows, head_rows);
    for (std::size_t c = 0; c < kv_rank_; ++c)
      for (std::size_t i = 0; i < nope_dim_; ++i) transposed.view().row(c)[i] = rows.row(i)[c];
    keys_.push_back(loader.packed(transposed.view()));
    values_.push_back(loader.packed(rows.row_range(nope_dim_, value_dim_)));
  }
}

void LatentAttention::forward(AttentionStep const& step, AttentionSpec const& spec, std::span<float const> sinks,
                              MatrixView<float const> x, MatrixView<float> out) const {
  Exec const& exec = step.exec;
  std::size_t const heads = spec.num_heads;
  std::size_t const q_dim = nope_dim_ + rope_dim_;
  std::size_t const key_dim = kv_rank_ + rope_dim_;
  MatrixView<float> const all = step.act.qkv.view().first_rows(x.rows);
  MatrixView<float> const down = all.columns(0, q_rank_ + key_dim);
  MatrixView<float> const q_latent = down.columns(0, q_rank_);
  MatrixView<float> const key = down.columns(q_rank_, key_dim);  // the latent and the rotated part
  MatrixView<float> const latent = key.columns(0, kv_rank_);
  MatrixView<float> const q = all.columns(q_rank_ + key_dim, heads * q_dim);

  linear(exec, x, down_, down);
  kv_a_norm_.forward(exec, latent, latent);
  if (q_rank_ != 0) {
    if (q_a_norm_) q_a_norm_->forward(exec, q_latent, q_latent);
    linear(exec, q_latent, q_b_, q);
  } else {
    linear(exec, x, q_b_, q);
  }
  if (spec.rope.kind != RopeKind::none) {
    bool const interleaved = spec.rope.interleaved;
    apply_rope(exec, q, {.num_heads = heads, .head_dim = q_dim, .first = nope_dim_, .interleaved = interleaved},
               step.angles.cos, step.angles.sin);
    apply_rope(exec, key, {.num_heads = 1, .head_dim = key_dim, .first = kv_rank_, .interleaved = interleaved},
               step.angles.cos, step.angles.sin);
  }
  if (spec.temperature) apply_temperature(exec, *spec.temperature, step.places, q);
  kv_write(exec, key, {}, step.places, step.cache);

  for (std::size_t begin = 0; begin < x.rows; begin += kLatentTokens) {
    std::size_t const count = std::min(kLatentTokens, x.rows - begin);
    TokenPlaces const places = step.places.part(begin, count);
    MatrixView<float> const part = q.row_range(begin, count);
    MatrixView<float> const queries =
        step.act.latent_queries.view().first_rows(count).columns(0, heads * key_dim);  // [S,Q*(C+R)]
    MatrixView<float> const sums =
        step.act.latent_attention.view().first_rows(count).columns(0, heads * kv_rank_);  // [S,Q*C]
    headwise_linear(exec, part, keys_, {.x_stride = q_dim, .y_stride = key_dim}, queries);
    copy_head_columns(exec, part, {.stride = q_dim, .first = nope_dim_}, heads, rope_dim_,
                      {.stride = key_dim, .first = kv_rank_}, queries);
    paged_attention(exec, queries, places, step.cache,
                    {.num_heads = heads, .scale = spec.softmax_scale, .span = spec.span, .sinks = sinks}, sums);
    headwise_linear(exec, sums, values_, {.x_stride = kv_rank_, .y_stride = value_dim_}, out.row_range(begin, count));
  }
}

std::size_t LatentAttention::size_bytes() const {
  std::size_t bytes =
      down_.size_bytes() + q_b_.size_bytes() + kv_a_norm_.size_bytes() + (q_a_norm_ ? q_a_norm_->size_bytes() : 0);
  for (auto const* matrices : {&keys_, &values_})
    for (PackedMatrix const& m : *matrices) bytes += m.size_bytes();
  return bytes;
}

}  // namespace expertmesh
