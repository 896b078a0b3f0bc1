#include "coordinator/model/attention.h"

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
}

void Attention::forward(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles,
                        TokenPlaces const& places, KvLayer& cache, Activations& act, MatrixView<float> out) const {
  AttentionStep const step{.exec = exec, .angles = angles, .places = places, .cache = cache, .act = act};
  MatrixView<float> const heads = act.attention.view().first_rows(x.rows).columns(0, o_.w.k());  // [T,Q*D]
  std::visit([&](auto const& attention) { attention.forward(step, spec_, sinks_, x, heads); }, heads_);
  linear(exec, heads, o_, out);
}

std::size_t Attention::size_bytes() const {
  return std::visit([](auto const& attention) { return attention.size_bytes(); }, heads_) + o_.size_bytes() +
         sinks_.size() * sizeof(float);
}

}  // namespace expertmesh
