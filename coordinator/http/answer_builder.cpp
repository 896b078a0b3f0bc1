#include "coordinator/http/answer_builder.h"

#include <algorithm>
#include <numeric>

#include "coordinator/text/json_text.h"

namespace expertmesh {

std::string sse_event(std::string const& json) {
  return "data: " + json + "\n\n";
}

AnswerBuilder::AnswerBuilder(ApiRequest request, ApiModel const& model, Tokenizer const* tokenizer, std::string id,
                             std::int64_t created, std::vector<AnsweredPrompt> prompts)
    : context_{.request = std::move(request), .model = model, .tokenizer = tokenizer},
      id_(std::move(id)),
      created_(created),
      prompts_(std::move(prompts)) {
  for (auto const& prompt : prompts_)
    for (std::size_t c = 0; c < context_.request.best_of; ++c)
      choices_.push_back(std::make_unique<ChoiceBuilder>(context_, prompt));
}

bool AnswerBuilder::finished() const {
  return std::ranges::all_of(choices_, [](auto const& choice) { return choice->finished(); });
}

AnswerBuilder::Json AnswerBuilder::head(char const* object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", context_.model.name}};
}

AnswerBuilder::Json AnswerBuilder::usage() const {
  std::size_t prompt_tokens = 0;
  std::size_t completion_tokens = 0;
  for (auto const& prompt : prompts_) prompt_tokens += prompt.ids.size();
  for (auto const& choice : choices_) completion_tokens += choice->completion_tokens();
  Json usage = {{"prompt_tokens", prompt_tokens},
                {"completion_tokens", completion_tokens},
                {"total_tokens", prompt_tokens + completion_tokens}};
  if (!context_.model.prefix_cache) return usage;
  std::size_t cached_tokens = 0;  // of each prompt's first choice: prompts are counted once
  for (std::size_t c = 0; c < choices_.size(); c += choices_.size() / prompts_.size())
    cached_tokens += choices_[c]->cached_tokens();
  usage["prompt_tokens_details"] = {{"cached_tokens", cached_tokens}};
  return usage;
}

std::string AnswerBuilder::take_events() {
  char const* const object = context_.request.chat ? "chat.completion.chunk" : "text_completion";
  if (event_head_.empty()) {
    event_head_ = dumped(head(object));
    event_head_.back() = ',';  // in place of the brace that closes it
  }
  std::string events;
  auto const add = [&](std::string const& choices, bool with_usage) {
    events.append("data: ").append(event_head_).append(R"("choices":[)").append(choices).append("]");
    if (with_usage) events.append(R"(,"usage":)").append(dumped(usage()));
    events.append("}\n\n");
  };
  for (std::size_t i = 0; i < choices_.size(); ++i)
    for (Json const& chunk : choices_[i]->take_chunks(i)) add(dumped(chunk), context_.request.continuous_usage);
  if (context_.request.include_usage && finished() && !std::exchange(usage_sent_, true)) add("", true);
  return events;
}

std::string AnswerBuilder::body() const {
  Json json = head(context_.request.chat ? "chat.completion" : "text_completion");
  json["choices"] = Json::array();
  std::size_t const best_of = context_.request.best_of;
  std::vector<std::size_t> order(best_of);
  for (std::size_t first = 0; first < choices_.size(); first += best_of) {
    std::iota(order.begin(), order.end(), first);
    if (context_.request.n < best_of)
      std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
        return choices_[a]->mean_logprob() > choices_[b]->mean_logprob();
      });
    for (std::size_t c = 0; c < context_.request.n; ++c)
      json["choices"].push_back(choices_[order[c]]->whole(json["choices"].size()));
  }
  json["usage"] = usage();
  return dumped(json);
}

}  // namespace expertmesh
