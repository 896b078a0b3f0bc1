#include "coordinator/text/token_decoder.h"

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

std::string const kDecoder = "decoder";

// The rules of transformers' clean_up_tokenization, one after the other.
std::string cleaned(std::string text) {
  for (char const* mark : {".", "?", "!", ","}) text = replaced(text, std::string(" ") + mark, mark);
  text = replaced(text, " ' ", "'");
  for (char const* end : {"n't", "'m", "'s", "'ve", "'re"}) text = replaced(text, std::string(" ") + end, end);
  return text;
}

// One token, from its start and its end.
std::string stripped(std::string token, std::string const& content, std::size_t start, std::size_t stop) {
  for (; start > 0 && token.starts_with(content); --start) token.erase(0, content.size());
  for (; stop > 0 && token.ends_with(content); --stop) token.erase(token.size() - content.size());
  return token;
}

}  // namespace

TokenDecoder::TokenDecoder(Json const& spec, bool clean_up) : clean_up_(clean_up) {
  if (spec.is_null())
    joins_with_spaces_ = true;
  else
    add(spec);
  if (byte_level_ && (byte_fallback_ || !steps_.empty() || !later_steps_.empty() || strip_start_ > 0))
    tokenizer_error(kDecoder, "ByteLevel together with other steps is not supported");
}

void TokenDecoder::add(Json const& spec) {
  auto const type = json_field<std::string>(spec, "type", kDecoder);
  if (type == "Sequence") {
    auto const& steps = json_part(spec, "decoders", kDecoder);
    if (!steps.is_array()) tokenizer_error(kDecoder, "field 'decoders' is not a list");
    for (auto const& step : steps) add(step);
  } else if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    if (byte_fallback_ || fused_) tokenizer_error(kDecoder, "ByteFallback behind itself or Fuse is not supported");
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Strip" && fused_) {
    if (strip_start_ > 0 || json_field_or<std::size_t>(spec, "stop", 0, kDecoder) != 0)
      tokenizer_error(kDecoder, "behind Fuse only one Strip, of the start, is supported");
    strip_content_ = json_field<std::string>(spec, "content", kDecoder);
    if (strip_content_.empty()) tokenizer_error(kDecoder, "Strip of an empty string");
    strip_start_ = json_field_or<std::size_t>(spec, "start", 0, kDecoder);
  } else {
    add_step(spec, type);
  }
}

void TokenDecoder::add_step(Json const& spec, std::string const& type) {
  if (fused_) tokenizer_error(kDecoder, "'" + type + "' behind Fuse is not supported");
  auto& steps = byte_fallback_ ? later_steps_ : steps_;
  if (type == "Replace") {
    // What byte tokens make is given out character by character.
    auto const& pattern = json_part(spec, "pattern", kDecoder);
    if (byte_fallback_) {
      auto const what = json_field<std::string>(pattern, "String", kDecoder);
      if (what.empty() || character_length(what) != what.size())
        tokenizer_error(kDecoder, "behind ByteFallback only a Replace of one character is supported");
    }
    steps.emplace_back([replace = replacement(spec, kDecoder)](std::string const& token, bool first) {
      return replace(token, first);
    });
  } else if (type == "Strip" && !byte_fallback_) {
    auto const content = json_field<std::string>(spec, "content", kDecoder);
    if (content.empty()) tokenizer_error(kDecoder, "Strip of an empty string");
    auto const start = json_field_or<std::size_t>(spec, "start", 0, kDecoder);
    auto const stop = json_field_or<std::size_t>(spec, "stop", 0, kDecoder);
    steps.emplace_back(
        [content, start, stop](std::string token, bool) { return stripped(std::move(token), content, start, stop); });
  } else if (type == "Metaspace") {
    auto const mark = json_field<std::string>(spec, "replacement", kDecoder);
    bool const prepended = json_field_or<std::string>(spec, "prepend_scheme", "always", kDecoder) != "never";
    // In the first token every mark counts as prepended.
    steps.emplace_back([mark, prepended](std::string const& token, bool first) {
      return replaced(token, mark, first && prepended ? "" : " ");
    });
  } else {
    tokenizer_error(kDecoder, "kind '" + type + "' is not supported" + (byte_fallback_ ? " behind ByteFallback" : ""));
  }
}

std::string TokenDecoder::through(std::vector<Step> const& steps, std::string token, bool first) {
  for (auto const& step : steps) token = step(std::move(token), first);
  return token;
}

bool TokenDecoder::is_byte_token(std::string const& token, char& byte) const {
  if (!byte_fallback_ || token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return false;
  auto const digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  int const high = digit(token[3]);
  int const low = digit(token[4]);
  if (high < 0 || low < 0) return false;
  byte = static_cast<char>(high * 16 + low);
  return true;
}

std::string TokenDecoder::bytes_of(std::string const& token) const {
  if (byte_level_) return from_byte_alphabet(token).value_or(token);
  std::string const text = through(steps_, token, false);
  if (char byte = 0; is_byte_token(text, byte)) return {byte};
  return through(later_steps_, text, false);
}

std::string TokenDecoder::whole(std::vector<std::string> const& tokens) const {
  std::string text;
  if (byte_level_) {
    for (auto const& token : tokens) text += bytes_of(token);
    text = repaired_utf8(text);
    return clean_up_ ? cleaned(std::move(text)) : text;
  }
  std::string run;         // of byte tokens
  std::size_t joined = 0;  // tokens in `text`, a run as one
  auto const add_joined = [&](std::string part) {
    if (joins_with_spaces_ && joined > 0) text += ' ';
    text += through(later_steps_, std::move(part), joined++ == 0);
  };
  auto const end_run = [&] {
    if (run.empty()) return;
    if (valid_utf8(run) == run.size()) {
      add_joined(run);
    } else {
      std::size_t const bytes = run.size();
      for (std::size_t i = 0; i < bytes; ++i) add_joined(std::string(kReplacement));
    }
    run.clear();
  };
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::string token = through(steps_, tokens[i], i == 0);
    if (char byte = 0; is_byte_token(token, byte)) {
      run += byte;
      continue;
    }
    end_run();
    add_joined(std::move(token));
  }
  end_run();
  for (std::size_t i = 0; i < strip_start_ && text.starts_with(strip_content_); ++i)
    text.erase(0, strip_content_.size());
  return clean_up_ ? cleaned(std::move(text)) : text;
}

// Byte-level: gives out whole characters of bytes_, one U+FFFD for each maximal invalid part, also for an unfinished
// character at the end of the text.
std::string TokenDecoder::Stream::take_byte_level(bool at_end) {
  std::string text;
  std::string_view rest = bytes_;
  while (!rest.empty()) {
    auto const [step, length] = utf8_step(rest);
    // The first two bytes of an encoded surrogate are known to be invalid, but their third belongs with them.
    bool const surrogate =
        rest.size() == 2 && rest[0] == '\xED' && step == Utf8Step::invalid && (rest[1] & 0xE0) == 0xA0;
    if ((step == Utf8Step::incomplete || surrogate) && !at_end) break;
    text += step == Utf8Step::character ? rest.substr(0, length) : kReplacement;
    rest.remove_prefix(length);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  return text;
}

// Byte tokens: gives out whole characters of the run; from the first doubtful byte on it holds the rest until the run
// ends, since a run that is not valid becomes one U+FFFD a byte.
std::string TokenDecoder::Stream::take_run(bool run_ends) {
  std::size_t const valid = valid_utf8(bytes_);
  std::string text = through(decoder_->later_steps_, bytes_.substr(0, valid), first_joined_);
  bytes_.erase(0, valid);
  if (!run_ends) return text;
  for (std::size_t i = 0; i < bytes_.size(); ++i) text += kReplacement;
  bytes_.clear();
  if (in_run_) first_joined_ = false;
  in_run_ = false;
  return text;
}

std::string TokenDecoder::Stream::without_leading(std::string text) {
  while (strip_left_ > 0 && !text.empty()) {
    if (!text.starts_with(decoder_->strip_content_)) {
      strip_left_ = 0;
      break;
    }
    text.erase(0, decoder_->strip_content_.size());
    --strip_left_;
  }
  return text;
}

std::string TokenDecoder::Stream::finished(std::string text, bool at_end) {
  text = held_ + without_leading(std::move(text));
  held_.clear();
  if (!at_end && text.ends_with(kReplacement)) {
    held_ = std::move(text);
    return {};
  }
  return decoder_->clean_up_ ? cleaned(std::move(text)) : text;
}

std::string TokenDecoder::Stream::push(std::string const& token) {
  if (decoder_->byte_level_) {
    bytes_ += decoder_->bytes_of(token);
    std::string text = take_byte_level(false);
    return decoder_->clean_up_ ? cleaned(std::move(text)) : text;
  }
  std::string part = through(decoder_->steps_, token, first_);
  first_ = false;
  if (char byte = 0; decoder_->is_byte_token(part, byte)) {
    if (!in_run_ && decoder_->joins_with_spaces_ && !first_joined_) bytes_ += ' ';
    in_run_ = true;
    bytes_ += byte;
    return finished(take_run(false), false);
  }
  std::string text = take_run(true);
  if (decoder_->joins_with_spaces_ && !first_joined_) text += ' ';
  text += through(decoder_->later_steps_, std::move(part), first_joined_);
  first_joined_ = false;
  return finished(std::move(text), false);
}

std::string TokenDecoder::Stream::finish() {
  if (!decoder_->byte_level_) return finished(take_run(true), true);
  std::string text = take_byte_level(true);
  return decoder_->clean_up_ ? cleaned(std::move(text)) : text;
}

}  // namespace expertmesh
