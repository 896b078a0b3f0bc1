#include "coordinator/render_command.h"

#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "coordinator/json_lines.h"
#include "coordinator/text/chat_template.h"

namespace expertmesh {

void render(RenderOptions const& options, std::istream& in, std::ostream& out) {
  ChatTemplates templates(
      options.template_file ? read_chat_template_file(*options.template_file) : read_chat_templates(options.model_dir),
      {.processes = 1});
  if (!templates.has_template()) throw ModelError(options.model_dir.string() + ": there is no chat template");
  answer_lines(in, out, [&](std::string const& line) {
    auto const text = templates.render(line);
    return text ? nlohmann::json{{"text", text.value()}} : nlohmann::json{{"error", text.error().message}};
  });
}

}  // namespace expertmesh
