// Chat messages -> prompt text, by the model's own template. Rendering happens in child processes (python3 with jinja2,
// as the library that checkpoints are published for does it), so that a template can neither reach this process nor
// hold it up: memory, CPU time and wall-clock time are bounded, and a child that overruns is killed and replaced.
#pragma once
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/base/error.h"

namespace expertmesh {

class RendererProcess;

struct ChatTemplateOptions {
  std::filesystem::path script;  // empty: render_chat_template.py beside the program
  std::size_t processes = 2;
  std::chrono::milliseconds deadline{5000};  // of one rendering
};

class ChatTemplates {
 public:
  // Reads the model's template (chat_template.jinja, chat_template.json, or tokenizer_config.json's) and special
  // tokens; the children start now if there is one. Must be made before MPI is initialised. ModelError or OutsideError.
  ChatTemplates(std::filesystem::path const& model_dir, ChatTemplateOptions options);
  ~ChatTemplates();

  [[nodiscard]] bool has_template() const;

  // request: a JSON object with messages and, where wanted, tools, documents, add_generation_prompt,
  // continue_final_message, kwargs, now, template (instead of the model's). The text is to be encoded without special
  // tokens: the template writes its own. 400 with the template's own message if it fails. Thread-safe; waits for a free
  // child. A model without a template renders nothing, also not a request's own template.
  [[nodiscard]] Result<std::string> render(std::string const& request);

  [[nodiscard]] std::vector<int> child_pids() const;  // of the children that are not rendering just now

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
