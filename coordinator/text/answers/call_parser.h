// Content with calls in it -> content and calls. Private to this folder.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/answer_parser.h"
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {

// White space around calls is not content: before the first one if nothing was said, between calls, and after the last.
class CallParser final : public AnswerParser {
 public:
  CallParser(std::unique_ptr<CallFormat> format, ToolSet tools)
      : format_(std::move(format)), tools_(std::move(tools)) {}
  std::vector<AnswerPiece> push(std::string_view text) override;
  std::vector<AnswerPiece> finish() override;

 private:
  // Takes what can be taken of the held text; false if the rest needs more.
  bool step(bool at_end, std::vector<AnswerPiece>& out);
  bool read_calls(std::size_t begin, std::size_t mark, bool at_end, std::vector<AnswerPiece>& out);
  void say(std::size_t size, std::vector<AnswerPiece>& out);  // the start of the held text is content

  std::unique_ptr<CallFormat> format_;
  ToolSet tools_;
  CallPlace place_ = CallPlace::start;
  std::string held_;
  CallReader::Memory memory_;  // of the call that the held text may be
};

}  // namespace expertmesh
