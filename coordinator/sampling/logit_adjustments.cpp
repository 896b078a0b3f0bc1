#include "coordinator/sampling/logit_adjustments.h"

namespace expertmesh {

LogitAdjustments::LogitAdjustments(std::size_t vocab) : place_(vocab) {
  list_.reserve(vocab);
}

TokenAdjustment& LogitAdjustments::at(TokenId id) {
  std::uint32_t& place = place_.at(static_cast<std::size_t>(id));
  if (place == 0) {
    list_.push_back({.token = static_cast<std::uint32_t>(id)});
    place = static_cast<std::uint32_t>(list_.size());
  }
  return list_[place - 1];
}

std::span<TokenAdjustment const> LogitAdjustments::of(SamplingParams const& params, SampledAfter const& after) {
  list_.clear();
  penalise(params, after);
  for (auto const& [token, bias] : params.logit_bias) at(token).bias += bias;
  if (after.tokens.size() - after.prompt_length < params.min_tokens)
    for (auto const ids : {after.eos_ids, std::span<TokenId const>(params.stop_token_ids)})
      for (TokenId id : ids) at(id).never = true;
  for (TokenAdjustment const& a : list_) place_[a.token] = 0;
  return list_;
}

void LogitAdjustments::penalise(SamplingParams const& params, SampledAfter const& after) {
  if (params.repetition_penalty != 1.0F)
    for (TokenId id : after.tokens) at(id).seen = true;
  if (params.frequency_penalty == 0.0F && params.presence_penalty == 0.0F) return;
  for (TokenId id : after.tokens.subspan(after.prompt_length)) ++at(id).penalty;  // how often, first
  for (TokenAdjustment& a : list_)
    if (a.penalty > 0) a.penalty = params.frequency_penalty * a.penalty + params.presence_penalty;
}

}  // namespace expertmesh
