// `expertmesh render`: chat templates without a model.
#pragma once
#include <filesystem>
#include <iosfwd>
#include <optional>

namespace expertmesh {

struct RenderOptions {
  std::filesystem::path model_dir;  // or:
  std::optional<std::filesystem::path> template_file;
};

// JSON lines, as ChatTemplates::render takes them, to {"text"} or {"error"}. ModelError if there is no template;
// OutsideError if the renderer cannot be started.
void render(RenderOptions const& options, std::istream& in, std::ostream& out);

}  // namespace expertmesh
