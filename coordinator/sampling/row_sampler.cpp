#include "coordinator/sampling/row_sampler.h"

#include "common/kernels/device.h"

namespace expertmesh {
namespace {

RowResult sample_on_host(Sampler& sampler, std::span<float const> logits, RowTask const& task) {
  RowResult result;
  if (task.prompt_logprobs)
    result.prompt_logprobs = sampler.logprobs(logits, task.next_of_prompt, *task.prompt_logprobs);
  if (!task.sampling) return result;
  TokenId const token = sampler.sample(logits, *task.sampling, task.after);
  if (!is_number(logits[static_cast<std::size_t>(token)])) return result;
  result.token = token;
  if (task.token_logprobs) result.token_logprobs = sampler.logprobs(logits, token, *task.token_logprobs);
  return result;
}

}  // namespace

RowSampler::RowSampler(std::size_t vocab, std::size_t max_rows, Exec const& exec) : exec_(exec) {
  Device* const device = exec.device();
  std::size_t const threads = device ? 1 : exec.pool().num_threads();
  for (std::size_t i = 0; i < threads; ++i) samplers_.emplace_back(vocab);
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
  if (device_sampler_) return finish_on_device(results);
  exec_.pool().parallel_for(tasks_.size(), [&](std::size_t begin, std::size_t end, std::size_t thread) {
    for (std::size_t i = begin; i < end; ++i)
      results[i] = sample_on_host(samplers_[thread], {logits_.row(i), logits_.cols}, tasks_[i]);
  });
}

void RowSampler::finish_on_device(std::span<RowResult> results) {
  device_sampler_->finish();
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    if (device_sampler_->takes(i)) {
      results[i] = device_sampler_->result(i, tasks_[i]);
    } else {
      exec_.device()->download(downloaded_.data(), logits_.row(i), downloaded_.size() * sizeof(float));
      results[i] = sample_on_host(samplers_.front(), downloaded_, tasks_[i]);
    }
  }
}

}  // namespace expertmesh
