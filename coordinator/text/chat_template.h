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
#include "coordinator/text/chat_template_files.h"

namespace expertmesh {

class RendererProcess;

struct ChatTemplateOptions {
  std::filesystem::path script{};  // empty: render_chat_template.py beside the program
  std::size_t processes = 2;
  std::chrono::milliseconds deadline{5000};  // of one rendering
  // Messages come as OpenAI's API has them and are shown to the template as it expects them: arguments of calls (text
  // of a JSON object, checked by the caller) as an object, an assistant's missing content as one that is none.
  bool messages_of_api = false;
};

class ChatTemplates {
 public:
  // The children start now if there is a template. Must be made before MPI is initialised. Throws OutsideError.
  ChatTemplates(ChatTemplateFiles files, ChatTemplateOptions options);
  ~ChatTemplates();

  [[nodiscard]] bool has_template() const;
  [[nodiscard]] ChatTemplateFiles const& files() const;
  // Why the template cannot be compiled, if so; then no row renders.
  [[nodiscard]] std::string const& compile_error() const;

  // row: a JSON object with messages and, where wanted, tools, documents, add_generation_prompt,
  // continue_final_message, now (ISO date-time for strftime_now), chat_template_kwargs (more variables), and any other
  // variable under its own name. The text is to be encoded without special tokens: the template writes its own. 400
  // with the template's own message if it fails. Thread-safe; waits for a free child.
  [[nodiscard]] Result<std::string> render(std::string const& row);

  [[nodiscard]] std::vector<int> child_pids() const;  // of the children that are not rendering just now

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
