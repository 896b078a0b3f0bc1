#include "coordinator/model/token_embedding.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "common/kernels/rows.h"

namespace expertmesh {

namespace {

std::size_t num_sinusoids(std::size_t hidden, std::size_t positions) {
  return (positions + 1) * hidden;
}

// [positions + 1, H]: sine and cosine of (n + padding) e^(-i ln(10000) / (H/2 - 1)), i < H/2; zeros for n = 0.
std::vector<float> make_sinusoids(SinusoidalPositions const& spec, std::size_t hidden, std::size_t positions) {
  std::size_t const half = hidden / 2;
  auto const step = static_cast<float>(std::log(10000.0) / static_cast<double>(half - 1));
  std::vector<float> frequencies(half);
  for (std::size_t i = 0; i < half; ++i) frequencies[i] = std::exp(static_cast<float>(i) * -step);
  std::vector<float> out(num_sinusoids(hidden, positions));
  for (std::size_t n = 1; n <= positions; ++n) {
    auto const number = static_cast<float>(n + static_cast<std::size_t>(spec.padding));
    float* const row = out.data() + n * hidden;
    for (std::size_t i = 0; i < half; ++i) {
      float const angle = number * frequencies[i];
      row[i] = std::sin(angle);
      row[half + i] = std::cos(angle);
    }
  }
  return out;
}

}  // namespace

TokenEmbedding::TokenEmbedding(ModelSpec const& spec, StackSpec const& stack, WeightLoader const& loader,
                               Limits const& limits, TokenEmbedding const* other)
    : name_(stack.embedding.value_or(spec.embedding)),
      table_(other && other->name_ == name_
                 ? other->table_
                 : std::make_shared<StoredTensor const>(loader.stored(name_, spec.vocab, spec.hidden))),
      multiplier_(spec.embedding_multiplier),
      positions_(spec.sinusoidal_positions) {
  if (loader.device())
    device_table_ = other && other->name_ == name_
                        ? other->device_table_
                        : std::make_shared<AlignedBuffer<std::byte> const>(table_->bytes, loader.device());
  if (!positions_) return;
  numbers_.resize(limits.tokens);
  if (other) {
    sinusoids_ = other->sinusoids_;
    return;
  }
  auto const numbers = make_sinusoids(*positions_, spec.hidden, limits.positions);
  sinusoids_ = std::make_shared<AlignedBuffer<float> const>(std::span(numbers), loader.device());
}

std::size_t TokenEmbedding::sinusoid_bytes(ModelSpec const& spec, std::size_t positions) {
  return spec.sinusoidal_positions ? num_sinusoids(spec.hidden, positions) * sizeof(float) : 0;
}

void TokenEmbedding::forward(StepContext const& step, MatrixView<float> out) {
  if (device_table_)
    embedding(step.exec, step.ids_on_device, table_->dtype, device_table_->data(), out);
  else
    embedding(step.exec, step.ids, table_->dtype, table_->bytes.data(), out);
  if (multiplier_ != 1.0F) scale(step.exec, out, multiplier_);
  if (positions_) add_sinusoids(step, out);
}

void TokenEmbedding::add_sinusoids(StepContext const& step, MatrixView<float> out) {
  MatrixView<float const> const table(sinusoids_->data(), sinusoids_->size() / out.cols, out.cols);
  EM_CHECK(out.rows <= numbers_.size(), out.rows << " tokens");
  TokenId const padding = positions_->padding;
  std::uint32_t count = 0;  // of the sequence's tokens up to this one that are no padding
  for (std::size_t t = 0; t < out.rows; ++t) {
    if (t == 0 || step.sequence_of[t] != step.sequence_of[t - 1]) {
      Sequence const& sequence = *step.sequences[step.sequence_of[t]];
      auto const& tokens = step.stack == StackKind::encoder ? sequence.input : sequence.tokens;
      auto const before = std::count(tokens.begin(), tokens.begin() + step.positions[t], padding);
      count = step.positions[t] - static_cast<std::uint32_t>(before);
    }
    bool const counts = step.ids[t] != padding;
    if (counts) ++count;
    EM_CHECK(count < table.rows, "position " << step.positions[t]);
    numbers_[t] = counts ? count : 0;
  }
  MatrixView<float> const rows = step.rows(step.act.normed);  // [T,H]
  gather_rows(step.exec, table, std::span(numbers_).first(out.rows), rows);
  add(step.exec, out, rows);
}

}  // namespace expertmesh
