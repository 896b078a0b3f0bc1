#include "coordinator/sampling/device_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/check.h"
#include "coordinator/sampling/log_softmax.h"
#include "coordinator/sampling/sampler.h"

namespace expertmesh {

DeviceSampler::Layout::Layout(std::size_t vocab, std::size_t max_rows)
    : max_adjustments(max_rows * std::min(vocab, kAdjustments)) {
  std::size_t next = 0;
  auto const place = [&](std::size_t bytes) {
    constexpr std::size_t kApart = 256;
    std::size_t const begin = next;
    next += (bytes + kApart - 1) / kApart * kApart;
    return begin;
  };
  ranked = place(max_rows * kMostRanked * sizeof(unsigned long long));
  chosen = place(max_rows * sizeof(RowChosen));
  rows = place(max_rows * sizeof(RowChoice));
  adjustments = place(max_adjustments * sizeof(TokenAdjustment));
  part_sums = place(max_rows * ((vocab + Device::kLogitsPart - 1) / Device::kLogitsPart) * sizeof(unsigned long long));
  end = next;
}

std::size_t DeviceSampler::device_bytes(std::size_t vocab, std::size_t max_rows) {
  return Layout(vocab, max_rows).end;
}

DeviceSampler::DeviceSampler(std::size_t vocab, std::size_t max_rows, Device& device)
    : vocab_(vocab),
      max_rows_(max_rows),
      device_(device),
      layout_(vocab, max_rows),
      here_(layout_.part_sums),
      there_(layout_.end, &device),
      adjustments_(vocab) {
  taken_.reserve(max_rows);
}

void DeviceSampler::start(MatrixView<float> logits, std::span<RowTask const> tasks) {
  EM_CHECK(logits.rows == tasks.size() && logits.rows <= max_rows_ && logits.cols == vocab_,
           tasks.size() << " tasks for logits [" << logits.rows << "," << logits.cols << "], room for [" << max_rows_
                        << "," << vocab_ << "]");
  auto* const choices = at<RowChoice>(layout_.rows);
  taken_.clear();
  num_adjustments_ = 0;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    choices[i] = {};
    taken_.push_back(prepare(tasks[i], choices[i]));
    if (!taken_.back()) choices[i] = {};
  }
  auto const any = [&](auto wants) { return std::any_of(choices, choices + tasks.size(), wants); };
  std::fill_n(at<RowChosen>(layout_.chosen), tasks.size(), RowChosen{});
  device_.upload(there_.data() + layout_.chosen, here_.data() + layout_.chosen,
                 layout_.adjustments + num_adjustments_ * sizeof(TokenAdjustment) - layout_.chosen);
  std::byte* const there = there_.data();
  any_ranked_ = any([](RowChoice const& c) { return c.num_ranked > 0; });
  device_.choose_tokens(logits, {.rows = reinterpret_cast<RowChoice const*>(there + layout_.rows),
                                 .adjustments = reinterpret_cast<TokenAdjustment*>(there + layout_.adjustments),
                                 .chosen = reinterpret_cast<RowChosen*>(there + layout_.chosen),
                                 .ranked = reinterpret_cast<unsigned long long*>(there + layout_.ranked),
                                 .part_sums = reinterpret_cast<unsigned long long*>(there + layout_.part_sums),
                                 .any_log_sum = any([](RowChoice const& c) { return c.log_sum; }),
                                 .any_ranked = any_ranked_,
                                 .any_adjusted = num_adjustments_ > 0,
                                 .any_drawn = any([](RowChoice const& c) { return c.choice == TokenChoice::drawn; })});
}

bool DeviceSampler::prepare(RowTask const& task, RowChoice& choice) {
  auto const& listed = task.sampling ? task.token_logprobs : task.prompt_logprobs;
  if (listed) {
    std::size_t const count = std::min(*listed, vocab_);
    if (count > kMostRanked) return false;
    choice.log_sum = true;
    choice.num_ranked = static_cast<std::uint32_t>(count);
  }
  if (!task.sampling) {
    if (!task.prompt_logprobs) return true;
    choice.choice = TokenChoice::given;
    choice.token = task.next_of_prompt;
    return true;
  }
  if (task.prompt_logprobs) return false;
  SamplingParams const& params = *task.sampling;
  if (auto const forced = forced_token(params, task.after)) {
    choice.choice = TokenChoice::given;
    choice.token = *forced;
    return true;
  }
  if (!adjust(task, choice)) return false;
  if (params.temperature == 0) {
    choice.choice = TokenChoice::best;
    return true;
  }
  choice.choice = TokenChoice::drawn;
  choice.inverse_temperature = inverse_temperature(params);
  choice.uniform = uniform_for(params, task.after);
  choice.min_p = params.min_p;
  choice.top_p = params.top_p;
  choice.top_k = static_cast<std::uint32_t>(std::min(params.top_k, vocab_));
  return true;
}

bool DeviceSampler::adjust(RowTask const& task, RowChoice& choice) {
  auto const adjustments = adjustments_.of(*task.sampling, task.after);
  if (adjustments.size() > layout_.max_adjustments - num_adjustments_) return false;
  choice.repetition_penalty = task.sampling->repetition_penalty;
  choice.first_adjustment = static_cast<std::uint32_t>(num_adjustments_);
  choice.num_adjustments = static_cast<std::uint32_t>(adjustments.size());
  std::ranges::copy(adjustments, at<TokenAdjustment>(layout_.adjustments) + num_adjustments_);
  num_adjustments_ += adjustments.size();
  return true;
}

void DeviceSampler::finish() {
  std::size_t const begin = any_ranked_ ? layout_.ranked : layout_.chosen;
  std::size_t const end = layout_.chosen + taken_.size() * sizeof(RowChosen);
  device_.download(here_.data() + begin, there_.data() + begin, end - begin);
}

RowResult DeviceSampler::result(std::size_t row, RowTask const& task) const {
  RowResult result;
  RowChosen const& chosen = reinterpret_cast<RowChosen const*>(here_.data() + layout_.chosen)[row];
  RowChoice const& choice = reinterpret_cast<RowChoice const*>(here_.data() + layout_.rows)[row];
  if (task.sampling) {
    if (!is_number(chosen.logit)) return result;
    result.token = chosen.token;
  }
  if (!choice.log_sum) return result;
  LogSoftmax const softmax(logit_of_rank(chosen.best), {.high = chosen.sum_high, .low = chosen.sum_low});
  TokenLogprobs logprobs{.chosen = {chosen.token, softmax.of(chosen.logit)}, .top = {}};
  auto const* const ranks =
      reinterpret_cast<unsigned long long const*>(here_.data() + layout_.ranked) + row * kMostRanked;
  for (std::size_t i = 0; i < choice.num_ranked; ++i)
    logprobs.top.push_back({static_cast<TokenId>(id_of_rank(ranks[i])), softmax.of(logit_of_rank(ranks[i]))});
  (task.sampling ? result.token_logprobs : result.prompt_logprobs) = std::move(logprobs);
  return result;
}

}  // namespace expertmesh
