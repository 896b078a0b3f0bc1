// gpt-oss' answers: messages with a header each, <|start|>ROLE<|channel|>CHANNEL to=RECIPIENT
// <|constrain|>json<|message|> TEXT<|end|>, of which the prompt has begun the first. The analysis channel is reasoning,
// a message to functions.NAME a call (its end, <|call|>, is the end of the answer), all else content. Private to this
// folder.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/answer_parser.h"

namespace expertmesh {

// Marks and headers are no text of the answer: they are never given out.
class HarmonyParser final : public AnswerParser {
 public:
  struct Options {
    bool calls;      // else what is sent to a function is content
    bool reasoning;  // else the analysis is content
  };
  explicit HarmonyParser(Options options) : options_(options) {}
  std::vector<AnswerPiece> push(std::string_view text) override;
  std::vector<AnswerPiece> finish() override;
  static std::vector<std::string_view> const& marks();

 private:
  enum class Place : std::uint8_t { between, header, message };
  enum class Kind : std::uint8_t { content, reasoning, call };
  bool step(bool at_end, std::vector<AnswerPiece>& out);
  bool open_message(std::string_view text, bool complete);  // false if more of it has to come
  void take_text(std::string_view text, std::vector<AnswerPiece>& out);
  void take_mark(std::string_view mark, std::vector<AnswerPiece>& out);
  void begin_message();
  void end_message(std::vector<AnswerPiece>& out);

  Options options_;
  Place place_ = Place::between;
  std::string header_;  // its marks too
  Kind kind_ = Kind::content;
  std::string recipient_;  // functions.NAME
  std::string call_;       // text of a call
  std::string held_;
};

}  // namespace expertmesh
