// A model directory's chat templates and the special tokens they are rendered with.
#pragma once
#include <filesystem>
#include <map>
#include <string>

namespace expertmesh {

struct ChatTemplateFiles {
  std::map<std::string, std::string> templates;  // by name: "default", "tool_use", …; empty if there are none
  std::map<std::string, std::string> variables;  // "bos_token" -> "<s>", …
};

// Of chat_template.jinja and additional_chat_templates/NAME.jinja, or chat_template.json, or tokenizer_config.json's
// chat_template (one, or a list of named ones). Special tokens: of tokenizer_config.json; special_tokens_map.json goes
// before it where the former has no added_tokens_decoder, as in older checkpoints. ModelError names file and field.
ChatTemplateFiles read_chat_templates(std::filesystem::path const& model_dir);
// One template without special tokens. ModelError if the file cannot be read.
ChatTemplateFiles read_chat_template_file(std::filesystem::path const& file);

}  // namespace expertmesh
