// Shim: 32-bit floats to and from the 16-bit types of tensors.
#pragma once

#include <cstdint>
#include <cstring>

namespace cuelight::trtllm
{
inline std::uint32_t bitsOf(float value)
{
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float floatOf(std::uint32_t bits)
{
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float fromBfloat16(std::uint16_t bits)
{
    return floatOf(static_cast<std::uint32_t>(bits) << 16);
}

// To the nearest, ties to even; NaN stays NaN.
inline std::uint16_t toBfloat16(float value)
{
    auto const bits = bitsOf(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U)
    {
        return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
    }
    return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float fromHalf(std::uint16_t half)
{
    auto const sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    auto const exponent = (half >> 10) & 0x1fU;
    auto const fraction = static_cast<std::uint32_t>(half & 0x3ffU);
    if (exponent == 0x1fU)
    {
        return floatOf(sign | 0x7f800000U | (fraction << 13));
    }
    if (exponent != 0)
    {
        return floatOf(sign | ((exponent + 112U) << 23) | (fraction << 13));
    }
    auto const small = static_cast<float>(fraction) * 0x1p-24f; // subnormal or zero
    return sign != 0 ? -small : small;
}

// To the nearest, ties to even; too large becomes infinite.
inline std::uint16_t toHalf(float value)
{
    auto const bits = bitsOf(value);
    auto const sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    auto const magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
    {
        return static_cast<std::uint16_t>(sign | 0x7e00U);
    }
    if (magnitude >= 0x477ff000U) // 65520 and above
    {
        return static_cast<std::uint16_t>(sign | 0x7c00U);
    }
    if (magnitude < 0x38800000U) // below 2^-14
    {
        // Adding 0.5 leaves the fraction, rounded to multiples of 2^-24, in the lowest bits.
        return static_cast<std::uint16_t>(sign | (bitsOf(floatOf(magnitude) + 0.5f) - 0x3f000000U));
    }
    auto const rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}
} // namespace cuelight::trtllm
