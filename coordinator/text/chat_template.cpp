#include "coordinator/text/chat_template.h"

#include <nlohmann/json.hpp>

#include "common/base/log.h"
#include "common/base/paths.h"
#include "coordinator/text/renderer_process.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

ApiError template_error(std::string const& message) {
  return {.status = 400,
          .message = message,
          .type = "invalid_request_error",
          .param = "messages",
          .code = "chat_template_error",
          .retry_after_s = {}};
}

}  // namespace

struct ChatTemplates::Impl {
  ChatTemplateFiles files;
  ChatTemplateOptions options;
  std::string setup{};   // first message to each child
  std::string python{};  // the first one that has jinja2
  std::string compile_error{};

  mutable std::mutex mutex{};
  std::condition_variable freed{};
  std::vector<std::unique_ptr<RendererProcess>> idle{};  // null: must be started anew before use

  // A child that knows the templates; none if it did not live through compiling them.
  std::unique_ptr<RendererProcess> start(std::string const& candidate, std::string* error_out = nullptr) const {
    auto process = std::make_unique<RendererProcess>(candidate, options.script);
    auto const answer = process->ask(setup, options.deadline);
    if (!answer) process.reset();
    if (!error_out) return process;
    Json const result = answer ? Json::parse(*answer, nullptr, false) : Json();
    Json const error =
        result.is_object() ? result.value("error", Json()) : Json("it takes more time or memory than it may");
    *error_out = error.is_string() ? error.get<std::string>() : "";
    return process;
  }

  std::unique_ptr<RendererProcess> start_first() {
    std::string failures;
    for (char const* candidate : {"python3", "/usr/bin/python3"}) {
      try {
        auto process = start(candidate, &compile_error);
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

ChatTemplates::ChatTemplates(ChatTemplateFiles files, ChatTemplateOptions options)
    : impl_(new Impl{.files = std::move(files), .options = std::move(options)}) {
  if (!has_template()) return;
  if (impl_->options.script.empty()) impl_->options.script = data_dir() / "render_chat_template.py";
  impl_->setup = Json{{"templates", impl_->files.templates},
                      {"variables", impl_->files.variables},
                      {"api", impl_->options.messages_of_api},
                      {"cpu_seconds", std::chrono::ceil<std::chrono::seconds>(impl_->options.deadline).count()}}
                     .dump(-1, ' ', true, Json::error_handler_t::replace);
  impl_->idle.push_back(impl_->start_first());
  while (impl_->idle.size() < impl_->options.processes) impl_->idle.push_back(impl_->start(impl_->python));
}

ChatTemplates::~ChatTemplates() = default;

bool ChatTemplates::has_template() const {
  return !impl_->files.templates.empty();
}

ChatTemplateFiles const& ChatTemplates::files() const {
  return impl_->files;
}

std::string const& ChatTemplates::compile_error() const {
  return impl_->compile_error;
}

Result<std::string> ChatTemplates::render(std::string const& row) {
  if (!has_template()) return template_error("this model has no chat template");  // and no child to wait for
  auto process = impl_->take();
  std::optional<std::string> answer;
  try {
    if (!process) process = impl_->start(impl_->python);
    if (process) answer = process->ask(row, impl_->options.deadline);
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
