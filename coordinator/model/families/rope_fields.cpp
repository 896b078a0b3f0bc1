#include "coordinator/model/families/rope_fields.h"

#include <cmath>
#include <string>

namespace expertmesh {
namespace {

constexpr double kMostStretch = 1e6;  // of a context

// An object of config.json (rope_scaling or rope_parameters), and where to find what it leaves out.
class RopeObject {
 public:
  RopeObject(ConfigReader rope, ConfigReader& config, RopeDefaults const& defaults)
      : rope_(std::move(rope)), config_(config), defaults_(defaults) {}

  void read(RopeSpec& spec) {
    spec.kind = read_kind();
    switch (spec.kind) {
      case RopeKind::none:
      case RopeKind::standard:
        break;
      case RopeKind::linear:
        spec.factor = factor();
        break;
      case RopeKind::dynamic:
        read_dynamic(spec);
        break;
      case RopeKind::banded:
        read_llama3(spec);
        break;
      case RopeKind::yarn:
        read_yarn(spec);
        break;
      case RopeKind::longrope:
        read_longrope(spec);
        break;
    }
  }
  [[nodiscard]] std::optional<double> optional(std::string_view field) {
    return rope_.has(field) ? std::optional(rope_.number_or(field, 0)) : std::nullopt;
  }
  void finish() { rope_.finish(); }

 private:
  RopeKind read_kind() {
    std::string_view const field = rope_.has("rope_type") ? "rope_type" : "type";
    std::string const name = rope_.text_or(field, "default");
    if (rope_.has("type") && rope_.has("rope_type") && rope_.text("type") != name)
      rope_.refuse("type", "differs from rope_type");
    if (name == "default") return RopeKind::standard;
    if (name == "linear") return RopeKind::linear;
    if (name == "dynamic") return RopeKind::dynamic;
    if (name == "llama3") return RopeKind::banded;
    if (name == "yarn") return RopeKind::yarn;
    if (name == "longrope" || name == "su") return RopeKind::longrope;
    rope_.refuse(field, "RoPE of type '" + name + "' is not supported");
  }

  double positive(std::string_view field) {
    if (!rope_.has(field)) rope_.refuse(field, "missing");
    double const value = rope_.number_or(field, 0);
    if (!(value > 0)) rope_.refuse(field, "must be positive");
    return value;
  }
  double factor() {
    double const factor = positive("factor");
    if (factor < 1 || factor > kMostStretch)
      rope_.refuse("factor", "must be at least 1 and at most " + std::to_string(static_cast<int>(kMostStretch)));
    return factor;
  }

  // Tokens the model was trained on before its context was stretched. Beside the object it counts more than in it.
  std::size_t original_max_position() {
    std::size_t const inside = rope_.count_or("original_max_position_embeddings", defaults_.max_position);
    return config_.count_or("original_max_position_embeddings", inside);
  }

  // A fixed alpha stretches the base once and for all (Hunyuan); else the base follows the sequence's length.
  void read_dynamic(RopeSpec& spec) {
    if (rope_.has("alpha")) {
      auto const d = static_cast<double>(spec.rotary_dim);
      spec.kind = RopeKind::standard;
      spec.theta *= std::pow(positive("alpha"), d / (d - 2));
      rope_.without_effect({"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"});
      return;
    }
    spec.factor = factor();
    spec.original_max_position = defaults_.max_position;
    rope_.without_effect({"original_max_position_embeddings"});
  }

  void read_llama3(RopeSpec& spec) {
    spec.factor = factor();
    spec.low_freq_factor = positive("low_freq_factor");
    spec.high_freq_factor = positive("high_freq_factor");
    if (spec.high_freq_factor < spec.low_freq_factor)
      rope_.refuse("high_freq_factor", "must not be below low_freq_factor");
    spec.original_max_position = original_max_position();
  }

  void read_yarn(RopeSpec& spec) {
    spec.original_max_position = original_max_position();
    // The reference wants the field, and takes a null in it for the quotient.
    spec.factor = rope_.is_null("factor")
                      ? static_cast<double>(defaults_.max_position) / static_cast<double>(spec.original_max_position)
                      : factor();
    auto const beta = [&](std::string_view field, double fallback) {
      double const value = rope_.number_or(field, fallback);
      if (value < 0) rope_.refuse(field, "must not be negative");
      return value == 0 ? fallback : value;
    };
    spec.beta_fast = beta("beta_fast", 32);
    spec.beta_slow = beta("beta_slow", 1);
    if (spec.beta_fast < spec.beta_slow) rope_.refuse("beta_fast", "must not be below beta_slow");
    spec.truncate = rope_.flag_or("truncate", true);
    double const mscale = rope_.number_or("mscale", 0);
    double const mscale_all_dim = rope_.number_or("mscale_all_dim", 0);
    double const magnitude = mscale != 0 && mscale_all_dim != 0
                                 ? yarn_magnitude(spec.factor, mscale) / yarn_magnitude(spec.factor, mscale_all_dim)
                                 : yarn_magnitude(spec.factor, 1);
    spec.magnitude = static_cast<float>(rope_.has("attention_factor") ? positive("attention_factor") : magnitude);
  }

  std::vector<double> factors(std::string_view field, std::size_t count) {
    auto values = rope_.numbers(field);
    if (values.size() != count)
      rope_.refuse(field, std::to_string(values.size()) + " factors for " + std::to_string(count) + " frequencies");
    for (double x : values)
      if (!(x > 0)) rope_.refuse(field, "must be positive");
    return values;
  }

  void read_longrope(RopeSpec& spec) {
    spec.short_factors = factors("short_factor", spec.rotary_dim / 2);
    spec.long_factors = factors("long_factor", spec.rotary_dim / 2);
    spec.original_max_position = original_max_position();
    auto const original = static_cast<double>(spec.original_max_position);
    double const stretch = rope_.has("factor") ? factor() : static_cast<double>(defaults_.max_position) / original;
    double const magnitude = stretch <= 1 ? 1 : std::sqrt(1 + std::log(stretch) / std::log(original));
    spec.magnitude = static_cast<float>(rope_.has("attention_factor") ? positive("attention_factor") : magnitude);
    spec.long_magnitude = spec.magnitude;
    if (!rope_.has("short_mscale") && !rope_.has("long_mscale")) return;
    spec.magnitude = static_cast<float>(positive("short_mscale"));
    spec.long_magnitude = static_cast<float>(positive("long_mscale"));
  }

  ConfigReader rope_;
  ConfigReader& config_;
  RopeDefaults const& defaults_;
};

}  // namespace

std::optional<double> rope_number(ConfigReader& config, std::string_view field) {
  for (char const* name : {"rope_scaling", "rope_parameters"})
    if (auto rope = config.object(name); rope && rope->has(field)) return rope->number_or(field, 0);
  return std::nullopt;
}

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RopeSpec read_rope(ConfigReader& config, RopeDefaults const& defaults) {
  RopeSpec spec{.theta = defaults.theta, .interleaved = defaults.interleaved};
  double share = defaults.partial_rotary_factor;
  std::optional<RopeObject> object;
  for (char const* field : {"rope_scaling", "rope_parameters"})
    if (auto rope = config.object(field); rope) {
      if (object) config.refuse(field, "both rope_scaling and rope_parameters are given");
      object.emplace(std::move(*rope), config, defaults);
    }
  // Inside the object, beside it, or both alike.
  auto const read = [&](char const* field, double& value) {
    std::optional<double> const inside = object ? object->optional(field) : std::nullopt;
    if (inside && config.has(field) && config.number_or(field, 0) != *inside)
      config.refuse(field, "differs from the one among the RoPE parameters");
    value = inside.value_or(config.number_or(field, value));
  };
  read("rope_theta", spec.theta);
  read("partial_rotary_factor", share);
  // As the reference has it: a number of 32 bits.
  if (!(spec.theta > 0) || !std::isnormal(static_cast<float>(spec.theta)))
    config.refuse("rope_theta", "must be positive, from 1.2e-38 to 3.4e38");
  if (!(share > 0 && share <= 1)) config.refuse("partial_rotary_factor", "must be above 0 and at most 1");
  if (share != 1 && !defaults.partial) config.refuse("partial_rotary_factor", "this family rotates whole heads");
  spec.rotary_dim = static_cast<std::size_t>(static_cast<double>(defaults.head_dim) * share);
  if (spec.rotary_dim % 2 != 0 || spec.rotary_dim == 0)
    config.refuse(share < 1                ? "partial_rotary_factor"
                  : config.has("head_dim") ? "head_dim"
                                           : "hidden_size",
                  "RoPE needs an even number of elements of a head, got " + std::to_string(spec.rotary_dim));
  if (object) {
    object->read(spec);
    object->finish();
  }
  return spec;
}

}  // namespace expertmesh
