#include "coordinator/text/chat_template_files.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/error.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

std::string read_text(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) throw ModelError(path.filename().string() + ": cannot be read");
  return text.str();
}

Json read_object(fs::path const& path) {
  if (!fs::exists(path)) return Json::object();
  Json object = Json::parse(read_text(path), nullptr, false);
  if (!object.is_object()) throw ModelError(path.filename().string() + ": not a JSON object");
  return object;
}

void read_templates(Json const& value, std::string const& file, std::map<std::string, std::string>& out) {
  if (value.is_string()) {
    out["default"] = value.get<std::string>();
  } else if (value.is_array()) {
    for (auto const& entry : value) {
      if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") || !entry["name"].is_string() ||
          !entry["template"].is_string())
        throw ModelError(file + ": field 'chat_template': each entry of a list needs 'name' and 'template'");
      out[entry["name"].get<std::string>()] = entry["template"].get<std::string>();
    }
  } else if (!value.is_null()) {
    throw ModelError(file + ": field 'chat_template' is neither a string nor a list");
  }
}

std::map<std::string, std::string> find_templates(fs::path const& dir, Json const& tokenizer_config) {
  std::map<std::string, std::string> templates;
  if (fs::exists(dir / "chat_template.jinja"))
    templates["default"] = read_text(dir / "chat_template.jinja");
  else if (fs::exists(dir / "chat_template.json"))
    read_templates(read_object(dir / "chat_template.json").value("chat_template", Json()), "chat_template.json",
                   templates);
  else if (tokenizer_config.contains("chat_template"))
    read_templates(tokenizer_config["chat_template"], "tokenizer_config.json", templates);
  if (fs::is_directory(dir / "additional_chat_templates"))
    for (auto const& entry : fs::directory_iterator(dir / "additional_chat_templates"))
      if (entry.path().extension() == ".jinja") templates[entry.path().stem().string()] = read_text(entry.path());
  return templates;
}

// A token is given as its text, or as an object that holds it.
void add_tokens(Json const& tokens, std::map<std::string, std::string>& out) {
  if (!tokens.is_object()) return;
  for (auto const& [name, value] : tokens.items()) {
    if (!name.ends_with("_token")) continue;
    if (value.is_string())
      out[name] = value.get<std::string>();
    else if (value.is_object() && value.contains("content") && value["content"].is_string())
      out[name] = value["content"].get<std::string>();
  }
}

}  // namespace

ChatTemplateFiles read_chat_templates(fs::path const& model_dir) {
  Json const tokenizer_config = read_object(model_dir / "tokenizer_config.json");
  ChatTemplateFiles files{.templates = find_templates(model_dir, tokenizer_config), .variables = {}};
  for (char const* named : {"extra_special_tokens", "model_specific_special_tokens"})
    add_tokens(tokenizer_config.value(named, Json()), files.variables);
  add_tokens(tokenizer_config, files.variables);
  if (!tokenizer_config.contains("added_tokens_decoder"))
    add_tokens(read_object(model_dir / "special_tokens_map.json"), files.variables);
  return files;
}

ChatTemplateFiles read_chat_template_file(fs::path const& file) {
  return {.templates = {{"default", read_text(file)}}, .variables = {}};
}

}  // namespace expertmesh
