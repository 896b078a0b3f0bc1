#include "common/config/expert_spec.h"

#include <algorithm>
#include <cmath>

namespace expertmesh {
namespace {

std::string in_field(char const* field, std::string const& problem) {
  return problem.empty() ? problem : field + (": " + problem);
}

template <class Slice, class... Sizes>
std::string in_field(char const* field, std::optional<Slice> const& slice, Sizes... sizes) {
  return slice ? in_field(field, problem_of(*slice, sizes...)) : std::string();
}

// "" or the one field that a has and b has not, or the other way round.
std::string difference(FfnTensors const& a, FfnTensors const& b) {
  if (a.gate.has_value() != b.gate.has_value()) return "gate";
  if (a.gate_bias.has_value() != b.gate_bias.has_value()) return "gate_bias";
  if (a.up_bias.has_value() != b.up_bias.has_value()) return "up_bias";
  if (a.down_bias.has_value() != b.down_bias.has_value()) return "down_bias";
  return {};
}

}  // namespace

std::size_t max_hidden(ExpertModelSpec const& model) {
  std::size_t hidden = 0;
  for (auto const& layer : model.layers) hidden = std::max(hidden, layer.hidden);
  return hidden;
}

std::string problem_of(FfnTensors const& t, std::size_t hidden, std::size_t intermediate) {
  if (t.gate_bias && !t.gate) return "gate_bias: there is no gate";
  for (std::string const& problem :
       {in_field("gate", t.gate, intermediate, hidden), in_field("up", problem_of(t.up, intermediate, hidden)),
        in_field("down", problem_of(t.down, hidden, intermediate)), in_field("gate_bias", t.gate_bias, intermediate),
        in_field("up_bias", t.up_bias, intermediate), in_field("down_bias", t.down_bias, hidden)})
    if (!problem.empty()) return problem;
  return {};
}

std::string problem_of(ActivationSpec const& a, bool gated) {
  bool const clamped = a.kind == Activation::clamped_silu;
  if (clamped && !gated) return "activation: clamped_silu without a gate";
  if (clamped ? !std::isfinite(a.alpha) : a.alpha != 0) return "alpha: out of place, or no number";
  if (clamped ? !(std::isfinite(a.limit) && a.limit > 0) : a.limit != 0) return "limit: out of place, or not above 0";
  return {};
}

std::string problem_of(ExpertLayerSpec const& layer) {
  if (layer.experts.empty()) return {};
  FfnTensors const& first = layer.experts.front();
  std::string problem = problem_of(layer.activation, first.gate.has_value());
  for (std::size_t e = 0; problem.empty() && e < layer.experts.size(); ++e) {
    std::string const where = "experts[" + std::to_string(e) + "]";
    if (auto const field = difference(layer.experts[e], first); !field.empty())
      problem = where + "." + field + ": some experts of the layer have one, some have none";
    else if (auto const wrong = problem_of(layer.experts[e], layer.hidden, layer.intermediate); !wrong.empty())
      problem = where + "." + wrong;
  }
  return problem;
}

}  // namespace expertmesh
