// <think>reasoning</think>content: the reasoning at the start of an answer, apart from what follows. Private to this
// folder.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/answer_parser.h"

namespace expertmesh {

struct ThinkTags {
  std::string_view open;
  std::string_view close;
};

// Whether a prompt leaves reasoning open, for the answer to go on with.
bool leaves_open(ThinkTags const& tags, std::string_view prompt, bool continues_message);

class ThinkParser final : public AnswerParser {
 public:
  // content reads what follows the reasoning. White space before the open tag is dropped.
  ThinkParser(ThinkTags tags, bool opened, std::unique_ptr<AnswerParser> content)
      : tags_(tags), opened_(opened), content_(std::move(content)) {}
  std::vector<AnswerPiece> push(std::string_view text) override;
  std::vector<AnswerPiece> finish() override;

 private:
  enum class Place : std::uint8_t { start, reasoning, content };
  bool step(bool at_end, std::vector<AnswerPiece>& out);

  ThinkTags tags_;
  bool opened_;  // by the prompt
  std::unique_ptr<AnswerParser> content_;
  Place place_ = Place::start;
  std::string held_;
};

}  // namespace expertmesh
