#include "coordinator/render_command.h"

#include <iostream>
#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "coordinator/json_lines.h"
#include "coordinator/text/chat_template.h"

namespace expertmesh {

void render_lines(RenderOptions const& options) {
  ChatTemplates templates(
      options.template_file ? read_chat_template_file(*options.template_file) : read_chat_templates(options.model_dir),
      {.processes = 1});
  if (!templates.has_template()) throw ModelError(options.model_dir.string() + ": there is no chat template");
  answer_lines(std::cin, std::cout, [&](std::string const& line) {
    auto const text = templates.render(line);
    nlohmann::json const answer = text ? nlohmann::json{{"text", text.value()}}  //
                                       : nlohmann::json{{"error", text.error().message}};
    return answer.dump(-1, ' ', true);
  });
}

}  // namespace expertmesh
