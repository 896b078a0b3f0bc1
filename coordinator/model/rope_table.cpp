#include "coordinator/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/base/check.h"
#include "common/kernels/device.h"

namespace expertmesh {
namespace {

// base^(2i/R): what f is the reciprocal of.
float wavelength_in_radians(RopeSpec const& spec, float base, std::size_t i) {
  return std::pow(base, static_cast<float>(2 * i) / static_cast<float>(spec.rotary_dim));
}

float dynamic_base(RopeSpec const& spec, std::size_t length) {
  auto const theta = static_cast<float>(spec.theta);
  if (length <= spec.original_max_position) return theta;
  float const stretch =
      static_cast<float>(spec.factor) * static_cast<float>(length) / static_cast<float>(spec.original_max_position) -
      static_cast<float>(spec.factor - 1);
  auto const r = static_cast<double>(spec.rotary_dim);
  return theta * std::pow(stretch, static_cast<float>(r / (r - 2)));
}

float banded_frequency(RopeSpec const& spec, float f) {
  auto const factor = static_cast<float>(spec.factor);
  auto const original = static_cast<float>(spec.original_max_position);
  auto const low = static_cast<float>(spec.low_freq_factor);
  auto const high = static_cast<float>(spec.high_freq_factor);
  float const wavelength = static_cast<float>(2 * std::numbers::pi) / f;
  if (wavelength > original / low) return f / factor;
  if (wavelength < original / high) return f;
  float const smooth = (original / wavelength - low) / (high - low);
  return (1.0F - smooth) * f / factor + smooth * f;
}

// Where the pairs lie that are mixed in yarn: 0 and before it f, 1 and after it f / factor.
struct YarnRamp {
  explicit YarnRamp(RopeSpec const& spec) {
    auto const r = static_cast<double>(spec.rotary_dim);
    auto const index_of = [&](double turns) {
      return r * std::log(static_cast<double>(spec.original_max_position) / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(spec.theta));
    };
    double first = index_of(spec.beta_fast);
    double last = index_of(spec.beta_slow);
    if (spec.truncate) {
      first = std::floor(first);
      last = std::ceil(last);
    }
    first = std::max(first, 0.0);
    last = std::min(last, r - 1);
    if (first == last) last += 0.001;
    begin = static_cast<float>(first);
    length = static_cast<float>(last - first);
  }
  [[nodiscard]] float at(std::size_t i) const {
    return std::clamp((static_cast<float>(i) - begin) / length, 0.0F, 1.0F);
  }
  float begin;
  float length;
};

void yarn_frequencies(RopeSpec const& spec, std::span<float> out) {
  YarnRamp const ramp(spec);
  for (std::size_t i = 0; i < out.size(); ++i) {
    float const w = wavelength_in_radians(spec, static_cast<float>(spec.theta), i);
    float const kept = 1.0F - ramp.at(i);
    out[i] = 1.0F / (static_cast<float>(spec.factor) * w) * (1.0F - kept) + 1.0F / w * kept;
  }
}

}  // namespace

void inverse_frequencies(RopeSpec const& spec, std::size_t length, std::span<float> out) {
  EM_CHECK(out.size() == spec.rotary_dim / 2, out.size() << " frequencies of " << spec.rotary_dim << " elements");
  if (spec.kind == RopeKind::yarn) return yarn_frequencies(spec, out);
  float const base = spec.kind == RopeKind::dynamic ? dynamic_base(spec, length) : static_cast<float>(spec.theta);
  auto const& factors = length > spec.original_max_position ? spec.long_factors : spec.short_factors;
  for (std::size_t i = 0; i < out.size(); ++i) {
    float const w = wavelength_in_radians(spec, base, i);
    switch (spec.kind) {
      case RopeKind::linear:
        out[i] = 1.0F / w / static_cast<float>(spec.factor);
        break;
      case RopeKind::banded:
        out[i] = banded_frequency(spec, 1.0F / w);
        break;
      case RopeKind::longrope:
        out[i] = 1.0F / (static_cast<float>(factors[i]) * w);
        break;
      default:
        out[i] = 1.0F / w;
    }
  }
}

RopeTable::RopeTable(RopeSpec const& spec, std::size_t max_tokens, DeviceMemory* device)
    : spec_(spec),
      inverse_frequencies_(spec.rotary_dim / 2),
      cos_(max_tokens, spec.rotary_dim / 2),
      sin_(max_tokens, spec.rotary_dim / 2),
      device_cos_(device ? max_tokens : 0, spec.rotary_dim / 2, device),
      device_sin_(device ? max_tokens : 0, spec.rotary_dim / 2, device) {
  inverse_frequencies(spec_, 0, inverse_frequencies_);
}

void RopeTable::compute(Exec const& exec, std::span<std::uint32_t const> positions,
                        std::span<std::uint32_t const> prompt_lengths) {
  EM_CHECK(positions.size() == prompt_lengths.size() && positions.size() <= cos_.view().rows,
           "T " << positions.size() << ", " << prompt_lengths.size() << " prompt lengths");
  num_tokens_ = positions.size();
  std::size_t const pairs = inverse_frequencies_.size();
  exec.pool().parallel_for(num_tokens_, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      float* const cos = cos_.view().row(t);
      float* const sin = sin_.view().row(t);
      std::size_t const length = std::max(std::size_t{prompt_lengths[t]}, positions[t] + std::size_t{1});
      bool const is_long = spec_.depends_on_length() && length > spec_.original_max_position;
      if (is_long) inverse_frequencies(spec_, length, {cos, pairs});
      float const* const frequencies = is_long ? cos : inverse_frequencies_.data();
      float const magnitude = spec_.kind == RopeKind::longrope && is_long ? spec_.long_magnitude : spec_.magnitude;
      for (std::size_t i = 0; i < pairs; ++i) {
        float const angle = static_cast<float>(positions[t]) * frequencies[i];
        sin[i] = std::sin(angle) * magnitude;
        cos[i] = std::cos(angle) * magnitude;
      }
    }
  });
  if (Device* device = exec.device(); device && num_tokens_ * pairs > 0) {
    std::size_t const bytes = num_tokens_ * pairs * sizeof(float);
    device->upload(device_cos_.view().data, cos_.view().data, bytes);
    device->upload(device_sin_.view().data, sin_.view().data, bytes);
  }
}

RopeAngles RopeTable::angles() const {
  if (device_cos_.size_bytes() > 0)
    return {device_cos_.view().first_rows(num_tokens_), device_sin_.view().first_rows(num_tokens_)};
  return {cos_.view().first_rows(num_tokens_), sin_.view().first_rows(num_tokens_)};
}

}  // namespace expertmesh
