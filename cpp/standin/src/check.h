// Stand-in: the exception that failed checks throw.
#pragma once

#include <stdexcept>
#include <string>

namespace tensorrt_llm::common
{
class TllmException : public std::runtime_error
{
public:
    explicit TllmException(std::string const& what)
        : std::runtime_error("[TensorRT-LLM][ERROR] Assertion failed: " + what)
    {
    }
};
} // namespace tensorrt_llm::common

namespace cuelight::standin
{
inline void check(bool holds, std::string const& what)
{
    if (!holds)
    {
        throw tensorrt_llm::common::TllmException(what);
    }
}
} // namespace cuelight::standin
