#include "coordinator/model/token_embedding.h"

#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "common/kernels/rows.h"

namespace expertmesh {

TokenEmbedding::TokenEmbedding(ModelSpec const& spec, StackSpec const& stack, WeightLoader const& loader,
                               std::size_t max_tokens, TokenEmbedding const* other)
    : name_(stack.embedding.value_or(spec.embedding)),
      table_(other && other->name_ == name_
                 ? other->table_
                 : std::make_shared<StoredTensor const>(loader.stored(name_, spec.vocab, spec.hidden))),
      multiplier_(spec.embedding_multiplier),
      sinusoids_(spec.sinusoidal_positions) {
  if (loader.device())
    device_table_ = other && other->name_ == name_
                        ? other->device_table_
                        : std::make_shared<AlignedBuffer<std::byte> const>(table_->bytes, loader.device());
  if (!sinusoids_) return;
  std::size_t const half = spec.hidden / 2;
  auto const step = static_cast<float>(std::log(10000.0) / static_cast<double>(half - 1));
  for (std::size_t i = 0; i < half; ++i) frequencies_.push_back(std::exp(static_cast<float>(i) * -step));
  numbers_.resize(max_tokens);
}

void TokenEmbedding::forward(StepContext const& step, MatrixView<float> out) {
  if (device_table_)
    embedding(step.exec, step.ids_on_device, table_->dtype, device_table_->data(), out);
  else
    embedding(step.exec, step.ids, table_->dtype, table_->bytes.data(), out);
  if (multiplier_ != 1.0F) scale(step.exec, out, multiplier_);
  if (sinusoids_) add_sinusoids(step, out);
}

void TokenEmbedding::add_sinusoids(StepContext const& step, MatrixView<float> out) {
  EM_CHECK(out.rows <= numbers_.size(), out.rows << " tokens");
  TokenId const padding = sinusoids_->padding;
  std::uint32_t count = 0;  // of the sequence's tokens up to this one that are no padding
  for (std::size_t t = 0; t < out.rows; ++t) {
    if (t == 0 || step.sequence_of[t] != step.sequence_of[t - 1]) {
      Sequence const& sequence = *step.sequences[step.sequence_of[t]];
      auto const& tokens = step.stack == StackKind::encoder ? sequence.input : sequence.tokens;
      auto const before = std::count(tokens.begin(), tokens.begin() + step.positions[t], padding);
      count = step.positions[t] - static_cast<std::uint32_t>(before);
    }
    if (step.ids[t] != padding) ++count;
    numbers_[t] = count + static_cast<std::uint32_t>(padding);
  }
  std::size_t const half = frequencies_.size();
  step.exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      if (step.ids[t] == padding) continue;
      float* const row = out.row(t);
      for (std::size_t i = 0; i < half; ++i) {
        float const angle = static_cast<float>(numbers_[t]) * frequencies_[i];
        row[i] += std::sin(angle);
        row[half + i] += std::cos(angle);
      }
    }
  });
}

}  // namespace expertmesh
