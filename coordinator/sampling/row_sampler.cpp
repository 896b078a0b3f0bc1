#include "coordinator/sampling/row_sampler.h"

namespace expertmesh {

RowSampler::RowSampler(std::size_t vocab, std::size_t max_rows, Device* device) : sampler_(vocab), device_(device) {
  if (!device) return;
  device_sampler_.emplace(vocab, max_rows, *device);
  downloaded_.resize(vocab);
}

void RowSampler::start(MatrixView<float> logits, std::span<RowTask const> tasks) {
  logits_ = logits;
  tasks_ = tasks;
  if (device_sampler_) device_sampler_->start(logits, tasks);
}

void RowSampler::finish(std::span<RowResult> results) {
  if (device_sampler_) device_sampler_->finish();
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    if (!device_sampler_) {
      results[i] = on_host({logits_.row(i), logits_.cols}, tasks_[i]);
    } else if (device_sampler_->takes(i)) {
      results[i] = device_sampler_->result(i, tasks_[i]);
    } else {
      device_->download(downloaded_.data(), logits_.row(i), downloaded_.size() * sizeof(float));
      results[i] = on_host(downloaded_, tasks_[i]);
    }
  }
}

RowResult RowSampler::on_host(std::span<float const> logits, RowTask const& task) {
  RowResult result;
  if (task.prompt_logprobs)
    result.prompt_logprobs = sampler_.logprobs(logits, task.next_of_prompt, *task.prompt_logprobs);
  if (!task.sampling) return result;
  TokenId const token = sampler_.sample(logits, *task.sampling, task.after);
  if (!is_number(logits[static_cast<std::size_t>(token)])) return result;
  result.token = token;
  if (task.token_logprobs) result.token_logprobs = sampler_.logprobs(logits, token, *task.token_logprobs);
  return result;
}

}  // namespace expertmesh
