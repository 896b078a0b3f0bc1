// One way of models to write calls into their text. One file each; stateless, so every answer may share it.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "coordinator/text/answer_parser.h"
#include "coordinator/text/answers/call_reader.h"
#include "coordinator/text/answers/tool_set.h"

namespace expertmesh {

// Where in the content a call could begin: nothing was said yet; in the middle; only white space since a call.
enum class CallPlace : std::uint8_t { start, middle, after_call };

class CallFormat {
 public:
  virtual ~CallFormat() = default;
  // What a call can begin with there. Of two that begin at one place neither begins the other.
  [[nodiscard]] virtual std::vector<std::string_view> marks(CallPlace place) const = 0;
  // Reads calls from a text that begins with a mark; their text is passed when the reader is still good. None but good:
  // a closing mark. Its verdict on a text, if it has one, is the same for every longer one.
  [[nodiscard]] virtual std::vector<ToolCall> read(CallReader& in, ToolSet const& tools) const = 0;
};

std::unique_ptr<CallFormat> hermes_calls();
std::unique_ptr<CallFormat> xml_calls();
std::unique_ptr<CallFormat> key_value_calls();
std::unique_ptr<CallFormat> mistral_calls();
std::unique_ptr<CallFormat> bare_json_calls();
std::unique_ptr<CallFormat> pythonic_calls();
std::unique_ptr<CallFormat> bare_json_or_pythonic_calls();
std::unique_ptr<CallFormat> deepseek_calls();

}  // namespace expertmesh
