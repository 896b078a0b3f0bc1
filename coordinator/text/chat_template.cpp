#include "coordinator/text/chat_template.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/log.h"
#include "common/base/paths.h"
#include "coordinator/text/renderer_process.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;  // templates see keys in the order they were given
namespace fs = std::filesystem;

std::string read_text(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

Json read_object(fs::path const& path) {
  if (!fs::exists(path)) return Json::object();
  Json object = Json::parse(read_text(path), nullptr, false);
  if (!object.is_object()) throw ModelError(path.filename().string() + ": not a JSON object");
  return object;
}

// The templates of a model: one, or several by name ("default", "tool_use").
struct ModelTemplates {
  std::string standard;
  std::string with_tools;
};

void read_templates(Json const& value, std::string const& file, ModelTemplates& out) {
  if (value.is_string()) {
    out.standard = value.get<std::string>();
  } else if (value.is_array()) {
    for (auto const& entry : value) {
      if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") || !entry["name"].is_string() ||
          !entry["template"].is_string())
        throw ModelError(file + ": field 'chat_template': each entry of a list needs 'name' and 'template'");
      if (entry["name"] == "default") out.standard = entry["template"].get<std::string>();
      if (entry["name"] == "tool_use") out.with_tools = entry["template"].get<std::string>();
    }
  } else if (!value.is_null()) {
    throw ModelError(file + ": field 'chat_template' is neither a string nor a list");
  }
}

ModelTemplates find_templates(fs::path const& dir, Json const& tokenizer_config) {
  ModelTemplates templates;
  if (fs::exists(dir / "chat_template.jinja"))
    templates.standard = read_text(dir / "chat_template.jinja");
  else if (fs::exists(dir / "chat_template.json"))
    read_templates(read_object(dir / "chat_template.json").value("chat_template", Json()), "chat_template.json",
                   templates);
  else if (tokenizer_config.contains("chat_template"))
    read_templates(tokenizer_config["chat_template"], "tokenizer_config.json", templates);
  return templates;
}

Json special_tokens(fs::path const& dir, Json const& tokenizer_config) {
  Json variables = Json::object();
  for (Json const& source : {read_object(dir / "special_tokens_map.json"), tokenizer_config})
    for (char const* name :
         {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      if (!source.contains(name)) continue;
      Json const& value = source[name];
      if (value.is_string())
        variables[name] = value;
      else if (value.is_object() && value.contains("content") && value["content"].is_string())
        variables[name] = value["content"];
    }
  return variables;
}

ApiError template_error(std::string const& message) {
  return {.status = 400,
          .message = "chat template: " + message,
          .type = "invalid_request_error",
          .param = "messages",
          .code = "chat_template_error",
          .retry_after_s = {}};
}

}  // namespace

struct ChatTemplates::Impl {
  ChatTemplateOptions options;
  ModelTemplates templates;
  Json variables;
  std::string python;

  mutable std::mutex mutex;
  std::condition_variable freed;
  std::vector<std::unique_ptr<RendererProcess>> idle;  // null: must be started anew before use

  // The first Python that has jinja2.
  std::unique_ptr<RendererProcess> start_first() {
    std::string failures;
    for (char const* candidate : {"python3", "/usr/bin/python3"}) {
      try {
        auto process = std::make_unique<RendererProcess>(candidate, options.script);
        python = candidate;
        return process;
      } catch (OutsideError const& error) {
        failures += std::string(failures.empty() ? "" : "; ") + error.what();
      }
    }
    throw OutsideError("start", 0, "no python3 with jinja2 for chat templates: " + failures, options.script.string());
  }

  std::unique_ptr<RendererProcess> take() {
    std::unique_lock lock(mutex);
    freed.wait(lock, [&] { return !idle.empty(); });
    auto process = std::move(idle.back());
    idle.pop_back();
    return process;
  }
  void give_back(std::unique_ptr<RendererProcess> process) {
    std::lock_guard lock(mutex);
    idle.push_back(std::move(process));
    freed.notify_one();
  }
};

ChatTemplates::ChatTemplates(fs::path const& model_dir, ChatTemplateOptions options) : impl_(std::make_unique<Impl>()) {
  impl_->options = std::move(options);
  if (impl_->options.script.empty()) impl_->options.script = data_dir() / "render_chat_template.py";
  Json const tokenizer_config = read_object(model_dir / "tokenizer_config.json");
  impl_->templates = find_templates(model_dir, tokenizer_config);
  impl_->variables = special_tokens(model_dir, tokenizer_config);
  if (!has_template()) return;
  impl_->idle.push_back(impl_->start_first());
  while (impl_->idle.size() < impl_->options.processes)
    impl_->idle.push_back(std::make_unique<RendererProcess>(impl_->python, impl_->options.script));
}

ChatTemplates::~ChatTemplates() = default;

bool ChatTemplates::has_template() const {
  return !impl_->templates.standard.empty();
}

Result<std::string> ChatTemplates::render(std::string const& request) {
  if (!has_template()) return template_error("this model has none");  // and no child to wait for
  Json message = Json::parse(request);
  bool const tools = message.contains("tools") && !message["tools"].is_null() && !impl_->templates.with_tools.empty();
  if (!message.contains("template"))
    message["template"] = tools ? impl_->templates.with_tools : impl_->templates.standard;
  message["variables"] = impl_->variables;
  message["cpu_seconds"] = std::chrono::ceil<std::chrono::seconds>(impl_->options.deadline).count();

  auto process = impl_->take();
  std::optional<std::string> answer;
  try {
    if (!process) process = std::make_unique<RendererProcess>(impl_->python, impl_->options.script);
    answer = process->ask(message.dump(-1, ' ', true), impl_->options.deadline);
  } catch (OutsideError const& error) {
    spdlog::error("chat template renderer: {}", error.what());
    impl_->give_back(nullptr);
    return ApiError{.status = 500,
                    .message = "the chat template renderer could not be started",
                    .type = "server_error",
                    .param = {},
                    .code = {},
                    .retry_after_s = {}};
  }
  if (!answer) process.reset();  // it overran or died: the next caller gets a new one
  impl_->give_back(std::move(process));
  if (!answer)
    return template_error("rendering took more than " + std::to_string(impl_->options.deadline.count()) +
                          " ms, or more memory than it may");
  Json const result = Json::parse(*answer, nullptr, false);
  if (result.is_object() && result.contains("text")) return result["text"].get<std::string>();
  return template_error(result.is_object() ? result.value("error", "no answer") : "no answer");
}

std::vector<int> ChatTemplates::child_pids() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<int> pids;
  for (auto const& process : impl_->idle)
    if (process) pids.push_back(process->pid());
  return pids;
}

}  // namespace expertmesh
