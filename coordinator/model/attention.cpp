#include "coordinator/model/attention.h"

#include "coordinator/model/relative_bias.h"

namespace expertmesh {
namespace {

std::variant<GroupedAttention, LatentAttention> make_heads(AttentionSpec const& spec, std::size_t hidden,
                                                           WeightLoader const& loader) {
  if (std::holds_alternative<LatentProjection>(spec.projection)) return LatentAttention(spec, hidden, loader);
  return GroupedAttention(spec, hidden, loader);
}

}  // namespace

Attention::Attention(AttentionSpec spec, std::size_t hidden, WeightLoader const& loader)
    : spec_(std::move(spec)),
      heads_(make_heads(spec_, hidden, loader)),
      o_(loader.linear({{spec_.o.weight, hidden, spec_.o.bias}}, spec_.num_heads * spec_.value_dim())) {
  if (spec_.sinks) sinks_ = loader.floats(*spec_.sinks, spec_.num_heads);
  if (spec_.relative_bias) {
    bias_ = load_relative_bias(*spec_.relative_bias, spec_.num_heads, loader);
    if (loader.device()) bias_ = bias_->copy_to(*loader.device());
  }
}

void Attention::forward(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles,
                        TokenPlaces const& places, KvLayer& cache, Activations& act, MatrixView<float> out) const {
  AttentionStep const step{
      .exec = exec, .angles = angles, .places = places, .cache = cache, .act = act, .bias = bias_ ? &*bias_ : nullptr};
  MatrixView<float> const heads = act.attention.view().first_rows(x.rows).columns(0, o_.w.k());  // [T,Q*D]
  std::visit([&](auto const& attention) { attention.forward(step, spec_, sinks_.span(), x, heads); }, heads_);
  linear(exec, heads, o_, out);
}

void Attention::write(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles, TokenPlaces const& places,
                      KvLayer& cache, Activations& act) const {
  std::get<GroupedAttention>(heads_).write(
      {.exec = exec, .angles = angles, .places = places, .cache = cache, .act = act, .bias = nullptr}, spec_, x);
}

std::size_t Attention::size_bytes() const {
  return std::visit([](auto const& attention) { return attention.size_bytes(); }, heads_) + o_.size_bytes() +
         sinks_.size_bytes() + (bias_ ? bias_->size_bytes() : 0);
}

CrossAttention::CrossAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader)
    : num_heads_(spec.num_heads), softmax_scale_(spec.softmax_scale) {
  auto const& p = std::get<GroupedProjection>(spec.projection);
  num_kv_heads_ = p.num_kv_heads;
  head_dim_ = p.head_dim;
  std::size_t const kv_rows = num_kv_heads_ * head_dim_;
  q_ = loader.linear({{p.q.weight, num_heads_ * head_dim_, p.q.bias}}, hidden);
  kv_ = loader.linear({{p.k.weight, kv_rows, p.k.bias}, {p.v.weight, kv_rows, p.v.bias}}, hidden);
  o_ = loader.linear({{spec.o.weight, hidden, spec.o.bias}}, num_heads_ * head_dim_);
}

void CrossAttention::write(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places, KvLayer& cache,
                           Activations& act) const {
  std::size_t const columns = num_kv_heads_ * head_dim_;
  MatrixView<float> const kv = act.qkv.view().first_rows(encoded.rows).columns(0, 2 * columns);
  linear(exec, encoded, kv_, kv);
  kv_write(exec, kv.columns(0, columns), kv.columns(columns, columns), places, cache);
}

void CrossAttention::forward(Exec const& exec, MatrixView<float const> x, TokenPlaces const& places,
                             KvLayer const& cache, Activations& act, MatrixView<float> out) const {
  MatrixView<float> const q = act.qkv.view().first_rows(x.rows).columns(0, num_heads_ * head_dim_);
  MatrixView<float> const heads = act.attention.view().first_rows(x.rows).columns(0, num_heads_ * head_dim_);
  linear(exec, x, q_, q);
  paged_attention(exec, q, places, cache, {.num_heads = num_heads_, .scale = softmax_scale_}, heads);
  linear(exec, heads, o_, out);
}

}  // namespace expertmesh
